"""Operations fused into kernels: what the fused code computes, and that it is one kernel where it should be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tests.backends.tvm.one_op import TOLERANCES, relative_error, run
from whet.backends.tvm.emit import express, kernel_regions
from whet.ir import Builder, DimRange, DType, Graph, Interpreter, TensorType
from whet.ir.dimensions import symbol
from whet.ir.graph import StateSlot, Value
from whet.ir.target import get_target

F32 = DType.F32
Build = Callable[[Builder], Sequence[Value]]


def compiled(
    build: Build, feeds: Sequence[Tensor], state: Sequence[Tensor] = ()
) -> tuple[list[Tensor], list[Tensor], int]:
    """Outputs of the compiled graph, of the interpreter, and the number of kernels."""
    graph = Graph()
    graph.outputs = list(build(Builder(graph)))
    out, emitted = run(graph, [*feeds, *state])
    interpreter = Interpreter(graph)
    ref = [*interpreter(*feeds), *interpreter.state]
    return out, ref, len(emitted.kernels)


def check(build: Build, feeds: Sequence[Tensor], kernels: int | None = None, state: Sequence[Tensor] = ()) -> None:
    out, ref, count = compiled(build, feeds, state)
    assert len(out) == len(ref)
    for left, right in zip(out, ref, strict=True):
        assert relative_error(left, right) <= TOLERANCES.get(right.dtype, 0.0)
    assert kernels is None or count == kernels


def inputs(b: Builder, *shapes: tuple[int, ...], dtype: DType = F32) -> list[Value]:
    return [b.input(f"x{index}", TensorType(shape, dtype)) for index, shape in enumerate(shapes)]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape)


def test_chain_with_broadcasting_is_one_kernel() -> None:
    def build(b: Builder) -> list[Value]:
        x, row, column = inputs(b, (5, 33), (33,), (5, 1))
        return [b.relu(b.mul(b.add(b.tanh(x), row), column))]

    check(build, [randn(5, 33), randn(33), randn(5, 1)], kernels=1)


def test_value_read_twice_by_its_only_user() -> None:
    def build(b: Builder) -> list[Value]:
        (x,) = inputs(b, (64, 64))
        y = b.silu(x)
        return [b.relu(b.mul(y, y))]

    check(build, [randn(64, 64)], kernels=1)


@pytest.mark.parametrize("op", ["silu", "gelu", "tanh", "hardswish", "relu", "mish"])
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
def test_long_chains_compile_in_reasonable_time(op: str, dtype: DType) -> None:
    """TVM's code generator takes time exponential in the length of such a chain, unless it is cut."""

    def build(b: Builder) -> list[Value]:
        (x,) = inputs(b, (4, 16), dtype=dtype)
        for _ in range(8):
            x = getattr(b, op)(x)
        return [x]

    check(build, [randn(4, 16).to(dtype.torch)])


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_conv_with_bias_relu_and_residual_is_one_kernel(layout: str) -> None:
    def build(b: Builder) -> list[Value]:
        x, residual = inputs(b, shape, shape)
        weight, bias = b.constant(kernel), b.constant(offset)
        attributes = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "layout": layout}
        y = b.relu(b.add(b.conv(x, weight, bias, **attributes), residual))
        return [b.mul(y, 2.0)]

    shape = (2, 32, 9, 10) if layout == "channels_first" else (2, 9, 10, 32)
    kernel, offset = randn(32, 32, 3, 3) / 10, randn(32)
    check(build, [randn(*shape), randn(*shape)], kernels=1)


def test_reduction_inside_of_a_chain() -> None:
    def build(b: Builder) -> list[Value]:
        (x,) = inputs(b, (6, 40))
        total = b.sum(b.exp(x), dims=(1,), keepdims=True)
        return [b.div(x, b.add(b.sqrt(total), 1.0))]

    check(build, [randn(6, 40)])


def test_value_with_several_users_is_computed_once() -> None:
    def build(b: Builder) -> list[Value]:
        (x,) = inputs(b, (6, 40))
        y = b.exp(x)
        return [b.add(b.sin(y), b.cos(y)), b.mul(y, 3.0)]

    check(build, [randn(6, 40)])


def test_movements_are_read_where_they_are_used() -> None:
    def build(b: Builder) -> list[Value]:
        x, y = inputs(b, (4, 6, 8), (3, 4, 8))
        cut = b.slice(x, starts=(0, 1, 0), stops=(4, 6, 8), steps=(1, 2, 1))
        turned = b.transpose(cut, permutation=(1, 0, 2))
        return [b.relu(b.add(b.flip(turned, dims=(2,)), y))]

    check(build, [randn(4, 6, 8), randn(3, 4, 8)], kernels=1)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_16_bit_chains_behind_a_contraction(dtype: DType) -> None:
    def build(b: Builder) -> list[Value]:
        (x,) = inputs(b, (7, 24), dtype=dtype)
        y = b.linear(x, b.constant(weight), b.constant(bias))
        return [b.mul(b.gelu(b.add(y, 0.5)), 2.0), b.softmax(y, axis=1)]

    weight, bias = (randn(*shape).to(dtype.torch) for shape in ((40, 24), (40,)))
    check(build, [randn(7, 24).to(dtype.torch)])


def test_reshapes_are_views_of_inputs_and_results() -> None:
    def build(b: Builder) -> list[Value]:
        (x,) = inputs(b, (4, 6))
        view = b.reshape(x, shape=(2, 12))
        return [view, b.reshape(b.neg(view), shape=(24,))]

    check(build, [randn(4, 6)], kernels=1)


def test_outputs_may_be_inputs_constants_and_each_other() -> None:
    def build(b: Builder) -> list[Value]:
        (x,) = inputs(b, (3, 4))
        y = b.exp(x)
        return [x, b.constant(table), y, y, b.scalar(2.5, F32), x]

    table = randn(5)
    check(build, [randn(3, 4)])


def test_state_goes_in_and_comes_out() -> None:
    def build(b: Builder) -> list[Value]:
        (x,) = inputs(b, (3, 4))
        old = Value("old", TensorType((3, 4), F32))
        new = b.add(b.mul(old, 0.9), x)
        b.graph.state.append(StateSlot(old, new, initial))
        return [b.sum(new, dims=(1,))]

    initial = randn(3, 4)
    check(build, [randn(3, 4)], state=[initial])


def test_scatter_and_sort_inside_of_a_graph() -> None:
    def build(b: Builder) -> list[Value]:
        x, indices = inputs(b, (4, 9), (4, 3))
        indices.type = TensorType((4, 3), DType.I64)
        values, order = b.sort(b.neg(x), axis=1)
        return [b.relu(b.scatter(values, indices, b.constant(updates), axis=1, reduction="add")), b.add(order, 1)]

    updates = randn(4, 3)
    check(build, [randn(4, 9), torch.randint(0, 9, (4, 3))])


SYMBOLIC: dict[str, Build] = {
    "elementwise": lambda b: [b.relu(b.add(_batch(b, 8), 1.0))],
    "softmax": lambda b: [b.softmax(_batch(b, 8), axis=0)],
    "layer_norm": lambda b: [b.layer_norm(b.transpose(_batch(b, 8), permutation=(1, 0)))],
    "linear": lambda b: [b.linear(_batch(b, 8), b.constant(torch.ones(5, 8)))],
    "sum": lambda b: [b.mean(_batch(b, 8), dims=(0,))],
    "concat": lambda b: [b.concat(x := _batch(b, 8), x, axis=0)],
    "reshape": lambda b: [b.reshape(x := _batch(b, 8), shape=(x.type.shape[0] * 2, 4))],
    "pad": lambda b: [b.pad(_batch(b, 8), padding=((1, 2), (0, 0)), mode="replicate")],
    "cumsum": lambda b: [b.cumsum(_batch(b, 8), dim=0)],
    "sort": lambda b: [b.sort(_batch(b, 8), axis=0)[0]],
    "topk": lambda b: [b.topk(_batch(b, 8), axis=0, k=1)[0]],
    "take": lambda b: [b.take(x := _batch(b, 8), b.iota(length=x.type.shape[0], dtype=DType.I64), axis=0)],
    "max_pool": lambda b: [
        b.max_pool(_images(b), kernel=(2, 2), stride=(2, 2), padding=((1, 1), (1, 1)), dilation=(1, 1))
    ],
    "adaptive": lambda b: [b.adaptive_avg_pool(_images(b), size=(3, 2))],
    "resize": lambda b: [
        b.resize(
            x := _images(b), size=(2 * x.type.shape[2], 3 * x.type.shape[2]), mode="linear", coordinates="half_pixel"
        )
    ],
    "nearest": lambda b: [
        b.resize(x := _images(b), size=(2 * x.type.shape[2], 5), mode="nearest", coordinates="asymmetric")
    ],
    "lstm": lambda b: list(b.lstm(_steps(b, 24), *map(b.constant, _STATES), None, b.constant(_RECURRENT))),
    "gru": lambda b: list(b.gru(_steps(b, 18), b.constant(_STATES[0]), None, b.constant(_RECURRENT[:18]))),
}  # fmt: skip
_STATES, _RECURRENT = (torch.randn(2, 6), torch.randn(2, 6)), torch.randn(24, 6)
_SHAPES = {
    **dict.fromkeys(("max_pool", "adaptive", "resize", "nearest"), (2, 3, None, 7)),
    "lstm": (None, 2, 24),
    "gru": (None, 2, 18),
}


def _batch(b: Builder, features: int) -> Value:
    return b.input("x", TensorType((symbol("n"), features), F32))


def _images(b: Builder) -> Value:
    return b.input("x", TensorType((2, 3, symbol("n"), 7), F32))


def _steps(b: Builder, features: int) -> Value:
    return b.input("x", TensorType((symbol("n"), 2, features), F32))


@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_dimensions(name: str) -> None:
    for size in (1, 2, 5, 40):
        shape = tuple(size if dim is None else dim for dim in _SHAPES.get(name, (None, 8)))
        check(SYMBOLIC[name], [torch.randn(shape)])


@pytest.mark.parametrize("quantized", [False, True])
def test_quantized_chain_is_one_exact_kernel(quantized: bool) -> None:
    """numerics: Q11, R4: every product and sum is rounded by itself; a fused multiply-add would round once."""

    def build(b: Builder) -> list[Value]:
        x, y = inputs(b, (64, 256), (64, 256), dtype=DType.I8)
        left, right = (
            b.dequantize(item, b.constant(scale), axis=0) for item, scale in zip((x, y), scales, strict=True)
        )
        total = b.add(left, right)
        if not quantized:
            return [total]
        return [b.quantize(total, b.scalar(0.0271, DType.F32), b.scalar(3, DType.I32), dtype=DType.I8)]

    scales = torch.rand(2, 64) / 10 + 0.01
    feeds = [torch.randint(-128, 128, (64, 256), dtype=torch.int8) for _ in range(2)]
    (out,), (ref,), kernels = compiled(build, feeds)
    assert torch.equal(out, ref)
    assert kernels == 1


@pytest.mark.parametrize("names", [("batch", "length"), ("new", "int")])
def test_what_users_call_dimensions_is_not_in_kernels(names: tuple[str, str]) -> None:
    """The same code whatever they are called: a name may be a word of the language that a kernel is printed in."""
    graph = Graph(dimensions={name: DimRange() for name in names})
    builder = Builder(graph)
    graph.outputs = [builder.relu(builder.input("x", TensorType(tuple(map(symbol, names)), F32)))]
    (region,) = kernel_regions(graph, get_target("x86"))
    expressed = express(region, get_target("x86"))
    assert {name: str(item) for name, item in expressed.context.symbols.items()} == dict(
        zip(sorted(names), ("s0", "s1"), strict=True)
    )
