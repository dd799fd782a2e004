from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tvm import te, tirx

from tests.backends.tvm.kernel_run import HOST, Run, last, run
from whet.backends.tvm.intrinsics.instructions import dot_instruction
from whet.backends.tvm.kernels.depthwise import depthwise, depthwise_tile, pack_depthwise_weight
from whet.backends.tvm.kernels.dot import (
    dot_conv,
    dot_linear,
    pack_dot_conv_weight,
    pack_dot_linear_weight,
    plan_dot_conv,
    plan_dot_linear,
)
from whet.backends.tvm.kernels.integer import compensation
from whet.backends.tvm.kernels.windows import window
from whet.ir.target import CATALOGUE, Target

DTYPES = {"uint8": torch.uint8, "int8": torch.int8}
PLAIN = replace(CATALOGUE["avx2"], name="plain", features=("avx",))
TARGETS = {
    "vpdpbusd_512": CATALOGUE["avx512-vnni"],
    "vpmaddwd_512": CATALOGUE["avx512"],
    "vpmaddwd_256": CATALOGUE["avx2"],
    "widen": PLAIN,
}


def runs_here(target: Target) -> bool:
    return set(target.features) <= set(HOST.features)


def activations(shape: tuple[int, ...], dtype: str, seed: int = 0) -> torch.Tensor:
    """Integers over the whole range of `dtype`, both ends included."""
    info = torch.iinfo(DTYPES[dtype])
    values = torch.randint(info.min, info.max + 1, shape, generator=torch.Generator().manual_seed(seed))
    values.flatten()[:2] = torch.tensor([info.min, info.max])
    return values.to(DTYPES[dtype])


def weights(shape: tuple[int, ...]) -> torch.Tensor:
    return activations(shape, "int8", seed=1)


# (batch, spatial, in, out, kernel, stride, padding, groups)
CASES = {
    "3x3": (1, (9, 9), 32, 64, 3, 1, 1, 1),
    "stem": (1, (15, 15), 3, 24, 3, 2, 1, 1),
    "odd": (2, (7, 5), 5, 3, 3, 1, 1, 1),
    "pointwise": (2, (7, 7), 16, 40, 1, 1, 0, 1),
    "odd pointwise": (1, (7, 7), 6, 19, 1, 1, 0, 1),
    "grouped": (1, (7, 7), 32, 64, 3, 1, 1, 4),
    "odd groups": (1, (7, 7), 15, 50, 3, 1, 1, 5),
    "groups of 6": (1, (7, 7), 12, 64, 3, 1, 1, 2),
    "1d": (1, (20,), 8, 16, 5, 1, 2, 1),
}


def convolve(name: str, target: Target, source: str, zero_point: int) -> tuple[Run, torch.Tensor]:
    batch, spatial, inputs, outputs, size, stride, padding, groups = CASES[name]
    rank = len(spatial)
    geometry = window((size,) * rank, (stride,) * rank, ((padding, padding),) * rank)
    x, weight = activations((batch, inputs, *spatial), source), weights((outputs, inputs // groups, *(size,) * rank))
    plan = plan_dot_conv(target, (batch, *spatial, inputs), outputs, geometry, groups, source)
    packed = pack_dot_conv_weight(weight, plan, groups)
    data = te.placeholder((batch, *spatial, inputs), source, name="data")
    filters = te.placeholder(tuple(packed.shape), str(packed.dtype).removeprefix("torch."), name="filters")
    offsets = te.placeholder((outputs,), "int32", name="offsets")
    sums = dot_conv(data, filters, geometry=geometry, out_channels=outputs, plan=plan, zero_point=zero_point)
    total = te.compute(sums.shape, lambda *i: sums[i] + offsets[i[-1]], name="total")
    functions = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}
    # Sums of products of 8-bit integers are exact in float64.
    exact = functions[rank](x.double() - zero_point, weight.double(), stride=stride, padding=padding, groups=groups)
    reference = last(exact).to(torch.int32)
    arrays = [last(x), packed, compensation(weight, zero_point, plan.offset)]
    return run([data, filters, offsets, total], arrays, reference.shape, target=target), reference


@pytest.mark.parametrize(("source", "zero_point"), [("uint8", 7), ("uint8", 255), ("int8", -3), ("int8", 127)])
@pytest.mark.parametrize("name", CASES)
def test_conv_is_exact(name: str, source: str, zero_point: int) -> None:
    result, expected = convolve(name, HOST, source, zero_point)
    assert result.rule == "contraction"
    np.testing.assert_array_equal(result.output, expected.numpy())


@pytest.mark.parametrize("source", ["uint8", "int8"])
@pytest.mark.parametrize("name", ["3x3", "odd", "grouped"])
@pytest.mark.parametrize("instruction", TARGETS)
def test_conv_is_exact_with_every_instruction(instruction: str, name: str, source: str) -> None:
    target = TARGETS[instruction]
    if not runs_here(target):
        pytest.skip(f"this processor has not got {set(target.features) - set(HOST.features)}")
    assert dot_instruction(target).name == instruction
    result, expected = convolve(name, target, source, 5)
    assert result.rule == "contraction"
    np.testing.assert_array_equal(result.output, expected.numpy())


@pytest.mark.parametrize("source", ["uint8", "int8"])
@pytest.mark.parametrize(("shape", "outputs"), [((1, 20, 32), 48), ((3, 7), 5), ((64,), 16)])
def test_linear_is_exact(shape: tuple[int, ...], outputs: int, source: str) -> None:
    x, weight = activations(shape, source), weights((outputs, shape[-1]))
    plan = plan_dot_linear(HOST, shape, outputs, source)
    packed = pack_dot_linear_weight(weight, plan)
    data = te.placeholder(shape, source, name="data")
    filters = te.placeholder(tuple(packed.shape), str(packed.dtype).removeprefix("torch."), name="filters")
    offsets = te.placeholder((outputs,), "int32", name="offsets")
    sums = dot_linear(data, filters, out_features=outputs, plan=plan)
    total = te.compute(sums.shape, lambda *i: sums[i] + offsets[i[-1]], name="total")
    expected = ((x.double() - 9) @ weight.double().T).to(torch.int32)
    arrays = [x, packed, compensation(weight, 9, plan.offset)]
    result = run([data, filters, offsets, total], arrays, expected.shape)
    np.testing.assert_array_equal(result.output, expected.numpy())


def test_linear_with_symbolic_rows_is_exact() -> None:
    rows = tirx.Var("rows", "int64")
    weight, x = weights((24, 20)), activations((11, 20), "uint8")
    plan = plan_dot_linear(HOST, (rows, 20), 24)
    packed = pack_dot_linear_weight(weight, plan)
    data, filters = te.placeholder((rows, 20), "uint8"), te.placeholder(tuple(packed.shape), "int8")
    sums = dot_linear(data, filters, out_features=24, plan=plan)
    expected = (x.double() @ weight.double().T).to(torch.int32)
    result = run([data, filters, sums], [x, packed], expected.shape, symbolic=True)
    assert result.rule == "contraction"
    np.testing.assert_array_equal(result.output, expected.numpy())


@pytest.mark.parametrize(("source", "zero_point"), [("uint8", 131), ("int8", -128)])
def test_depthwise_is_exact(source: str, zero_point: int) -> None:
    geometry = window((3, 3), (2, 2), ((0, 1), (0, 1)))
    x, weight = activations((1, 24, 14, 14), source), weights((24, 1, 3, 3))
    packed = pack_depthwise_weight(weight)
    data = te.placeholder((1, 14, 14, 24), source, name="data")
    filters, offsets = te.placeholder((3, 3, 24), "int8"), te.placeholder((24,), "int32")
    tile = depthwise_tile(HOST, (1, 14, 14, 24), 24, geometry, "int32")
    fill = tirx.const(zero_point, source)
    sums = depthwise(data, filters, geometry=geometry, tile=tile, pad_value=fill, accumulator="int32")
    total = te.compute(sums.shape, lambda *i: sums[i] + offsets[i[-1]])
    grown = torch.nn.functional.pad(x.double() - zero_point, (0, 1, 0, 1))
    exact = torch.nn.functional.conv2d(grown, weight.double(), stride=2, groups=24)
    reference = last(exact).to(torch.int32)
    arrays = [last(x), packed, compensation(weight, zero_point)]
    result = run([data, filters, offsets, total], arrays, reference.shape)
    assert result.rule == "depthwise"
    np.testing.assert_array_equal(result.output, reference.numpy())


def test_compensation_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(OverflowError, match="32 bits"):
        compensation(torch.full((1, 2**17), 127, dtype=torch.int8), 255)
