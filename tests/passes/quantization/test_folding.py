"""Folding: quantize and dequantize around real operations become operations on codes, exactly as the contract says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import whet
from tests.passes.equality import build, count, relative_error, weight
from whet.errors import PassError
from whet.ir import Builder, DType, Graph, Interpreter, Value, verify
from whet.ir.dimensions import DimRange, symbol
from whet.ir.types import TensorType
from whet.passes import Context, FoldQuantization, PassManager, Tracer
from whet.passes.quantization.parameters import quantize_weight, weight_parameters

X, Y = (0.05, 120), (0.11, 7)
CONV = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}


def parameters(b: Builder, pair: tuple[float, int]) -> tuple[Value, Value]:
    scale, zero_point = pair
    return b.constant(torch.tensor(scale)), b.constant(torch.tensor(zero_point, dtype=torch.int32))


def codes(b: Builder, x: Value, pair: tuple[float, int] = X, dtype: DType = DType.U8) -> Value:
    result: Value = b.quantize(x, *parameters(b, pair), dtype=dtype)
    return result


def trip(b: Builder, x: Value, pair: tuple[float, int] = X, dtype: DType = DType.U8) -> Value:
    result: Value = b.dequantize(codes(b, x, pair, dtype), *parameters(b, pair))
    return result


def integers(b: Builder, tensor: Tensor, axis: int | None = 0, zero_point: int | None = None) -> Value:
    affine = weight_parameters(tensor)
    point = () if zero_point is None else (b.constant(torch.full((len(affine.scale),), zero_point, dtype=torch.int32)),)
    scale = b.constant(affine.scale)
    result: Value = b.dequantize(b.constant(quantize_weight(tensor, affine)), scale, *point, axis=axis)
    return result


def fold(graph: Graph, **options: Any) -> Graph:
    result = FoldQuantization().run(graph, Context(**options)).graph
    verify(result)
    return result


def inputs(graph: Graph) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(value.type.static_shape, generator=generator) * 3 for value in graph.inputs]


def real_error(before: Graph, after: Graph) -> float:
    given = inputs(before)
    return max(
        relative_error(out.float(), ref.float())
        for out, ref in zip(Interpreter(after)(*given), Interpreter(before)(*given), strict=True)
    )


def one_code(before: Graph, after: Graph) -> None:
    """Codes differ by one at most: the rounding of the product of two scales."""
    given = inputs(before)
    for out, ref in zip(Interpreter(after)(*given), Interpreter(before)(*given), strict=True):
        assert out.dtype is ref.dtype
        difference = (out.int() - ref.int()).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01


def conv(b: Builder, x: Value) -> Value:
    y: Value = b.conv(trip(b, x), integers(b, weight(6, 4, 3, 3)), b.constant(weight(6, seed=1)), **CONV)
    return y


@pytest.mark.parametrize("between", [None, "relu", "clamp"])
def test_a_convolution_is_requantized(between: str | None) -> None:  # numerics: Q5, Q7, Q8, Q10
    def body(b: Builder, x: Value) -> Value:
        y = conv(b, x)
        if between:
            y = getattr(b, between)(y, **({"minimum": 0.0, "maximum": 6.0} if between == "clamp" else {}))
        return codes(b, y, Y)

    before = build(body, (2, 4, 5, 5))
    after = fold(before)
    expected = {"quantize": 1, "conv_integer": 1, "requantize": 1} | ({"clamp": 1} if between else {})
    assert {name: n for name, n in count(after).items() if name != "constant"} == expected
    one_code(before, after)
    multiplier = next(op for op in after.operations if op.name == "requantize").operand(1).constant
    scales = weight_parameters(weight(6, 4, 3, 3)).scale.double()
    wanted = torch.tensor(X[0]).double() * scales / torch.tensor(Y[0]).double()
    assert multiplier is not None and torch.equal(multiplier, wanted.float())


def test_without_a_quantize_behind_it_the_sum_is_dequantized() -> None:
    before = build(lambda b, x: (conv(b, x), b.relu(conv(b, x))), (2, 4, 5, 5))
    after = fold(before)
    assert count(after)["conv_integer"] == 2 and count(after)["requantize"] == 0
    assert real_error(before, after) < 1e-4  # the bias is rounded


def test_layers_that_read_one_activation_share_its_codes() -> None:
    def body(b: Builder, x: Value) -> tuple[Value, ...]:
        shared = trip(b, x)
        return tuple(b.linear(shared, integers(b, weight(5, 8, seed=seed))) for seed in range(3))

    after = fold(build(body, (4, 8)))
    assert count(after)["quantize"] == 1 and count(after)["linear_integer"] == 3


def test_a_matmul_of_two_activations() -> None:
    def body(b: Builder, x: Value, y: Value) -> Value:
        transposed = b.transpose(trip(b, y, Y, DType.I8), permutation=(0, 2, 1))
        return b.softmax(b.matmul(trip(b, x), transposed), axis=2)

    before = build(body, (2, 3, 8), (2, 5, 8))
    after = fold(before)
    product = next(op for op in after.operations if op.name == "matmul_integer")
    assert (product.attributes["x_zero_point"], product.attributes["y_zero_point"]) == (X[1], Y[1])
    assert real_error(before, after) < 1e-6


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (lambda b, x: b.mean(trip(b, x), dims=(2, 3)), "sum_integer"),
        (lambda b, x: b.adaptive_avg_pool(trip(b, x), size=(1, 1)), "sum_integer"),
        (lambda b, x: b.adaptive_avg_pool(trip(b, x), size=(3, 2)), "sum_pool_integer"),
        (
            lambda b, x: b.avg_pool(trip(b, x), kernel=(3, 3), stride=(2, 1), padding=((1, 1), (1, 0))),
            "sum_pool_integer",
        ),
        (
            lambda b, x: b.avg_pool(trip(b, x), kernel=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), divisor=3),
            "sum_pool_integer",
        ),
    ],
)
def test_averages_are_sums_of_codes(body: Callable[..., Value], name: str) -> None:  # numerics: Q9, Q11
    before = build(body, (2, 3, 6, 6))
    after = fold(before)
    assert count(after)[name] == 1 and real_error(before, after) < 1e-6
    requantized = build(lambda b, x: codes(b, body(b, x), Y), (2, 3, 6, 6))
    folded = fold(requantized)
    assert count(folded)["requantize"] == 1 and count(folded)["quantize"] == 1
    one_code(requantized, folded)


@pytest.mark.parametrize(
    "move",
    [
        lambda b, x: b.max_pool(x, kernel=(3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), dilation=(1, 1)),
        lambda b, x: b.reshape(x, shape=(2, 108)),
        lambda b, x: b.transpose(x, permutation=(0, 2, 3, 1)),
        lambda b, x: b.slice(x, starts=(0, 1, 0, 0), stops=(2, 3, 6, 6), steps=(1, 1, 2, 1)),
        lambda b, x: b.flip(x, dims=(2,)),
        lambda b, x: b.relu(x),
        lambda b, x: b.concat(x, b.relu(x), axis=1),
        lambda b, x: b.take(x, b.constant(torch.tensor([1, 0])), axis=1),
    ],
)
def test_what_moves_or_selects_acts_on_codes(move: Callable[..., Value]) -> None:  # numerics: Q4, Q10
    before = build(lambda b, x: codes(b, move(b, trip(b, x))), (2, 3, 6, 6))
    after = fold(before)
    assert count(after)["dequantize"] == 0 and count(after)["quantize"] == 1
    given = inputs(before)
    assert torch.equal(Interpreter(after)(*given)[0], Interpreter(before)(*given)[0])


def test_a_clamp_keeps_its_bounds_as_codes() -> None:  # numerics: Q10
    def body(b: Builder, x: Value) -> Value:
        return codes(b, b.clamp(trip(b, x), minimum=-1.01, maximum=2.49))

    before = build(body, (3, 50))
    after = fold(before)
    clamp = next(op for op in after.operations if op.name == "clamp")
    assert clamp.attributes == {"minimum": 100, "maximum": 170}
    assert torch.equal(Interpreter(after)(*inputs(before))[0], Interpreter(before)(*inputs(before))[0])


def test_a_bias_that_no_integer_holds_is_added_behind() -> None:
    bias = torch.tensor([1e6, -2.0, 0.0])
    channels = torch.tensor([[1e-9, 0.0], [1.0, 2.0], [0.0, 0.0]])
    before = build(lambda b, x: b.linear(trip(b, x), integers(b, channels), b.constant(bias)), (4, 2))
    after = fold(before)
    assert count(after)["linear_integer"] == 1 and count(after)["add"] == 1
    assert real_error(before, after) < 1e-6


def declined(graph: Graph) -> str:
    tracer = Tracer()
    with pytest.raises(PassError, match="could change nothing"):
        PassManager([FoldQuantization()]).run(graph, Context(tracer=tracer))
    return tracer.report()


@pytest.mark.parametrize(
    ("body", "shapes", "reason"),
    [
        (lambda b, x: b.linear(x, integers(b, weight(3, 8))), [(2, 8)], "not dequantized by constants"),
        (lambda b, x: b.linear(trip(b, x), b.constant(weight(3, 8))), [(2, 8)], "weight is not dequantized"),
        (lambda b, x: b.linear(trip(b, x), integers(b, weight(3, 8), 0, 5)), [(2, 8)], "must be symmetric"),
        (lambda b, x: b.linear(trip(b, x), integers(b, weight(8, 8), 1)), [(2, 8)], "of dimension 1, not 0"),
        (lambda b, x, y: b.matmul(trip(b, x), trip(b, y)), [(1, 33026), (33026, 1)], "32 bits hold 33025"),
        (
            lambda b, x: b.avg_pool(
                trip(b, x), kernel=(2, 2), stride=(2, 2), padding=((1, 0), (0, 0)), count_padding=False
            ),
            [(1, 2, 5, 5)],
            "another divisor",
        ),
        (lambda b, x: b.adaptive_avg_pool(trip(b, x), size=(2, 2)), [(1, 2, 5, 5)], "different sizes"),
    ],
)
def test_what_has_no_integer_form_stays_and_says_why(  # numerics: Q6
    body: Callable[..., Value], shapes: list[tuple[int, ...]], reason: str
) -> None:
    assert reason in declined(build(body, *shapes))


def test_concats_of_unequal_parameters_stay() -> None:
    report = declined(build(lambda b, x, y: b.concat(trip(b, x), trip(b, y, Y), axis=0), (2, 3), (2, 3)))
    assert "different parameters" in report


def test_a_symbolic_sum_needs_a_maximum() -> None:
    def graph(maximum: int | None) -> Graph:
        result = Graph(dimensions={"n": DimRange(1, maximum)})
        b = Builder(result)
        n = symbol("n")
        x, y = (b.input(name, TensorType(shape, DType.F32)) for name, shape in (("x", (3, n)), ("y", (n, 4))))
        result.outputs = [b.matmul(trip(b, x), trip(b, y))]
        return result

    assert "no bound" in declined(graph(None))
    assert count(fold(graph(512)))["matmul_integer"] == 1


def test_the_compiled_module_gives_the_interpreters_codes() -> None:
    """Requantized sums, residuals, concats and pools, each an output, and two readers of one dequantize."""

    def body(b: Builder, x: Value) -> tuple[Value, ...]:
        first = trip(b, b.relu(conv(b, x)), (0.07, 0))
        second = b.conv(first, integers(b, weight(6, 6, 1, 1)), **{**CONV, "padding": ((0, 0), (0, 0))})
        total = trip(b, b.add(second, first), (0.2, 99))
        joined = b.concat(total, trip(b, b.sub(second, first), (0.2, 99)), axis=1)
        pooled = b.max_pool(joined, kernel=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1))
        average = b.avg_pool(pooled, kernel=(2, 2), stride=(1, 1), padding=((1, 0), (0, 1)))
        flat = b.reshape(trip(b, average, (0.1, 128)), shape=(2, 12 * 16))
        return codes(b, total), codes(b, joined, (0.2, 99)), codes(b, b.linear(flat, integers(b, weight(5, 192))), Y)

    before = build(body, (2, 4, 8, 8))
    after = fold(before)
    assert count(after)["sum_pool_integer"] == 1 and count(after)["requantize"] >= 2
    compiled = whet.optimize(after, "x86")
    for _ in range(2):
        given = inputs(before)
        for actual, expected in zip(compiled(*given), Interpreter(after)(*given), strict=True):
            assert torch.equal(actual, expected)
    assert math.isfinite(real_error(before, after))
