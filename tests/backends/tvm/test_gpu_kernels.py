"""Kernels for CUDA give what `evaluate` gives: their source runs here on an emulated GPU, in both orders of threads."""

from __future__ import annotations

import functools
from typing import Any, Final

import pytest
import torch

from tests.backends.tvm.emulated_gpu import EmulatedGpu, needs_compiler
from tests.backends.tvm.one_op import graph_of, reference, relative_error, tolerance
from tests.ir.samples import Sample
from whet.backends.tvm.cuda import schedule_cuda
from whet.backends.tvm.emit import emit
from whet.ir.target import get_target

pytestmark = [needs_compiler, pytest.mark.timeout(600)]

CONV: Final[dict[str, Any]] = {
    "layout": "channels_last",
    "padding": ((1, 1), (1, 1)),
    "stride": (1, 1),
    "dilation": (1, 1),
    "groups": 1,
}
F16, F32, I8, U8 = torch.float16, torch.float32, torch.int8, torch.uint8
BOTH = (1, 2)
"""Slots of constants: weight and bias."""


def numbers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Normal numbers, or codes over the whole range of an integer type."""
    generator = torch.Generator().manual_seed(sum(shape))
    if dtype.is_floating_point:
        return torch.randn(*shape, generator=generator).to(dtype)
    limits = torch.iinfo(dtype)
    low, high = max(limits.min, -1000), min(limits.max, 1000)
    return torch.randint(low, high + 1, shape, generator=generator, dtype=dtype)


def linear(dtype: torch.dtype, rows: tuple[int, ...], inner: int, columns: int) -> Sample:
    """With a bias."""
    return Sample("linear", (numbers(dtype, *rows, inner), numbers(dtype, columns, inner), numbers(dtype, columns)), {})


def linear_integer(x: torch.dtype, rows: int, inner: int, columns: int, zero_point: int) -> Sample:
    """With a bias of i32."""
    operands = numbers(x, rows, inner), numbers(I8, columns, inner), numbers(torch.int32, columns)
    return Sample("linear_integer", operands, {"x_zero_point": zero_point})


def conv(x: tuple[int, ...], outputs: int, kernel: int, types: Any = (F16, F16, F16), **attributes: Any) -> Sample:
    """A convolution of x[N, H, W, C]; of integers where `x_zero_point` is given."""
    inner = x[-1] // attributes.get("groups", 1)
    operands = (numbers(types[0], *x), numbers(types[1], outputs, inner, kernel, kernel), numbers(types[2], outputs))
    name = "conv_integer" if "x_zero_point" in attributes else "conv"
    return Sample(name, operands, {**CONV, **attributes})


BYTES = (I8, I8, torch.int32)
NO_PADDING = ((0, 0), (0, 0))

# name -> sample, slots of constants, the rule that is to take it
PRODUCTS: Final[dict[str, tuple[Sample, tuple[int, ...], str]]] = {
    "whole tiles": (linear(F16, (64,), 64, 64), BOTH, "tensor_core"),
    "ragged rows, columns and depth": (linear(F16, (2, 35), 104, 70), BOTH, "tensor_core"),
    "odd columns": (linear(F16, (20,), 50, 33), BOTH, "tensor_core"),
    "a weight that is computed": (linear(F16, (40,), 40, 24), (), "tensor_core"),
    "batches": (Sample("matmul", (numbers(F16, 2, 3, 18, 40), numbers(F16, 3, 40, 20)), {}), (), "tensor_core"),
    "padded convolution": (conv((2, 9, 7, 16), 24, 3), BOTH, "tensor_core"),
    "stride, dilation, no padding": (
        conv((1, 13, 14, 8), 40, 3, stride=(2, 1), dilation=(1, 2), padding=NO_PADDING),
        BOTH,
        "tensor_core",
    ),
    "groups, uneven padding": (conv((1, 8, 8, 32), 32, 3, groups=2, padding=((2, 0), (0, 1))), BOTH, "tensor_core"),
    "groups of few columns": (conv((1, 8, 8, 32), 40, 3, groups=4), BOTH, "stages"),
    "three channels": (conv((1, 15, 15, 3), 24, 3, stride=(2, 2)), BOTH, "tensor_core"),
    "signed bytes": (linear_integer(I8, 33, 100, 40, -7), BOTH, "tensor_core"),
    "unsigned bytes": (linear_integer(U8, 33, 96, 40, 0), BOTH, "tensor_core"),
    "bytes, border of a zero point": (conv((1, 9, 9, 32), 24, 3, BYTES, x_zero_point=-100), BOTH, "tensor_core"),
    "bytes, border of zeros": (
        conv((1, 9, 9, 16), 24, 3, (U8, I8, torch.int32), x_zero_point=0),
        BOTH,
        "tensor_core",
    ),
    "two activations": (
        Sample("matmul_integer", (numbers(I8, 2, 20, 32), numbers(U8, 2, 32, 36)), {}),
        (),
        "tensor_core",
    ),
    "f32": (linear(F32, (70,), 50, 90), BOTH, "thread_tiles"),
    "f32 convolution": (conv((1, 9, 9, 12), 20, 3, (F32, F32, F32), stride=(2, 2)), BOTH, "thread_tiles"),
    "short sums of bytes": (linear_integer(U8, 40, 12, 24, 3), BOTH, "thread_tiles"),
    "one row": (linear(F16, (1,), 70, 50), BOTH, "reduction"),
    "one channel a group": (conv((1, 9, 9, 12), 12, 3, (F32, F32, F32), groups=12), BOTH, "stages"),
    "bytes, one channel a group": (
        conv((1, 9, 9, 12), 12, 3, BYTES, groups=12, x_zero_point=5),
        BOTH,
        "stages",
    ),
}
OLDER: Final = {
    "sm_75": {
        "ragged rows, columns and depth": "tensor_core",
        "padded convolution": "tensor_core",
        "unsigned bytes": "tensor_core",
        "bytes, border of a zero point": "tensor_core",
    },
    "sm_70": {
        "ragged rows, columns and depth": "thread_tiles",
        "signed bytes": "thread_tiles",
        "bytes, border of zeros": "thread_tiles",
    },
}
ROWS = numbers(F32, 6, 70)
OTHERS: Final[dict[str, tuple[Sample, tuple[int, ...], str]]] = {
    "vectors": (Sample("add", (numbers(F16, 6, 72), numbers(F16, 6, 72)), {}), (), "elementwise"),
    "broadcast": (Sample("mul", (numbers(F32, 5, 7), numbers(F32, 7)), {}), (), "elementwise"),
    "functions": (Sample("exp", (ROWS,), {}), (), "elementwise"),
    "softmax": (Sample("softmax", (numbers(F32, 2, 3, 70),), {"axis": 2}), (), "rows"),
    "softmax of half": (Sample("softmax", (numbers(F16, 3, 300),), {"axis": 1}), (), "rows"),
    "layer norm": (
        Sample(
            "layer_norm", (numbers(F32, 6, 300), numbers(F32, 300), numbers(F32, 300)), {"rank": 1, "epsilon": 1e-5}
        ),
        (),
        "rows",
    ),
    "mean of rows": (Sample("mean", (ROWS,), {"dims": (1,), "keepdims": False}), (), "reduction"),
    "mean of pictures": (
        Sample("mean", (numbers(F32, 2, 5, 5, 40),), {"dims": (1, 2), "keepdims": False}),
        (),
        "stages",
    ),
    "largest": (Sample("amax", (ROWS,), {"dims": (1,), "keepdims": False}), (), "stages"),
}

Case = tuple[Sample, tuple[int, ...], str]


def cases(architecture: str) -> dict[str, Case]:
    """All kernels that run on one architecture."""
    if architecture == "sm_80":
        return PRODUCTS | OTHERS
    return {name: (*PRODUCTS[name][:2], rule) for name, rule in OLDER[architecture].items()}


@functools.cache
def outputs(architecture: str) -> dict[str, tuple[torch.Tensor, torch.Tensor, str]]:
    """Name -> result, result with threads in the other order, the rule that scheduled it; one library for all."""
    chosen = cases(architecture)
    graph, feeds = graph_of([case[0] for case in chosen.values()], [case[1] for case in chosen.values()])
    emitted = emit(graph, get_target(f"cuda:{architecture}"), schedule_cuda, lambda _: None)
    gpu = EmulatedGpu(emitted, architecture)
    forwards, backwards = gpu.run(graph, feeds), gpu.run(graph, feeds, backwards=True)
    rules = [kernel.schedule for kernel in emitted.kernels]
    return dict(zip(chosen, zip(forwards, backwards, rules, strict=True), strict=True))


@pytest.mark.parametrize(("architecture", "name"), [(one, name) for one in ("sm_80", *OLDER) for name in cases(one)])
def test_results(architecture: str, name: str) -> None:
    sample, _, rule = cases(architecture)[name]
    result, other, taken = outputs(architecture)[name]
    (expected,) = reference(sample)
    assert taken == rule
    assert relative_error(result, expected) <= tolerance(sample, expected)
    assert torch.equal(result, other), "the order in which threads run changes the result: a barrier is missing"
