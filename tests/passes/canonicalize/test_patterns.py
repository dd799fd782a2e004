"""Each simplification by itself: what it turns into what, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tests.passes.equality import build, count, run_checked, weight
from whet.ir import Builder, DType, Graph, Value, print_graph
from whet.passes import Canonicalize

Body = Callable[..., Any]


def canonical(body: Body, *shapes: Sequence[int], dtype: DType = DType.F32) -> Graph:
    return run_checked(Canonicalize(), build(body, *shapes, dtype=dtype))


def operations(graph: Graph) -> list[str]:
    return [operation.name for operation in graph.operations if operation.name != "constant"]


def vector(*shape: int) -> torch.Tensor:
    return weight(*shape, seed=3)


CONV: dict[str, Any] = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
PADDED: dict[str, Any] = CONV | {"padding": ((1, 1), (1, 1))}
FC = ((3, 4),)
IMAGE = ((2, 4, 5, 5),)


def linear(b: Builder, x: Value, bias: bool = False) -> Any:
    return b.linear(x, b.constant(weight(6, 4)), b.constant(weight(6)) if bias else None)


def conv(b: Builder, x: Value, groups: int = 1, bias: bool = False, **attributes: Any) -> Any:
    kernel = b.constant(weight(8, 4 // groups, 3, 3))
    return b.conv(x, kernel, b.constant(weight(8)) if bias else None, groups=groups, **(attributes or PADDED))


def conv_transpose(b: Builder, x: Value, groups: int = 1) -> Any:
    attributes = {"stride": (2, 2), "padding": (0, 0), "output_padding": (0, 0), "dilation": (1, 1)}
    return b.conv_transpose(x, b.constant(weight(4, 8 // groups, 2, 2)), None, groups=groups, **attributes)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


CASES: dict[str, tuple[Body, tuple[Sequence[int], ...], list[str]]] = {
    # identities
    "x + 0": (lambda b, x: b.add(x, 0.0), FC, []),
    "0 + x": (lambda b, x: b.add(b.constant(torch.zeros(4)), x), FC, []),
    "x - 0": (lambda b, x: b.sub(x, 0.0), FC, []),
    "0 - x stays": (lambda b, x: b.sub(b.scalar(0.0, DType.F32), x), FC, ["sub"]),
    "x * 1": (lambda b, x: b.mul(x, b.constant(ones(3, 1))), FC, []),
    "x / 1": (lambda b, x: b.div(x, 1.0), FC, []),
    "1 / x stays": (lambda b, x: b.div(b.scalar(1.0, DType.F32), x), FC, ["div"]),
    "x ** 1": (lambda b, x: b.pow(x, 1.0), FC, []),
    "x * 0 stays": (lambda b, x: b.mul(x, 0.0), FC, ["mul"]),
    "x + 0 that broadcasts stays": (lambda b, x: b.add(x, b.constant(torch.zeros(2, 3, 4))), FC, ["add"]),
    "cast to its own type": (lambda b, x: b.cast(x, dtype=DType.F32), FC, []),
    "f32 -> f64 -> f32": (lambda b, x: b.cast(b.cast(x, dtype=DType.F64), dtype=DType.F32), FC, []),
    "f32 -> f16 -> f32 stays": (
        lambda b, x: b.cast(b.cast(x, dtype=DType.F16), dtype=DType.F32),
        FC,
        ["cast"] * 2,
    ),
    "relu(relu(x))": (lambda b, x: b.relu(b.relu(x)), FC, ["relu"]),
    "abs(abs(x))": (lambda b, x: b.abs(b.abs(x)), FC, ["abs"]),
    "neg(neg(x))": (lambda b, x: b.neg(b.neg(x)), FC, []),
    "clamp without bounds": (lambda b, x: b.clamp(x), FC, []),
    "clamp from 0": (lambda b, x: b.clamp(x, minimum=0.0), FC, ["relu"]),
    "relu, then clamp": (lambda b, x: b.clamp(b.relu(x), maximum=0.5), FC, ["clamp"]),
    "clamp, then relu": (lambda b, x: b.relu(b.clamp(x, minimum=-0.5, maximum=0.5)), FC, ["clamp"]),
    "clamps that do not meet": (
        lambda b, x: b.clamp(b.clamp(x, minimum=-2.0, maximum=-1.0), minimum=0.5, maximum=0.7),
        FC,
        ["clamp"],
    ),
    "clamp with crossed bounds stays": (
        lambda b, x: b.clamp(b.clamp(x, minimum=1.0, maximum=-1.0), minimum=-3.0, maximum=3.0),
        FC,
        ["clamp"] * 2,
    ),
    "pad by nothing": (lambda b, x: b.pad(x, padding=((0, 0), (0, 0))), FC, []),
    "pad that shifts stays": (lambda b, x: b.pad(x, padding=((0, 0), (1, -1))), FC, ["pad"]),
    "sum over nothing": (lambda b, x: b.sum(x, dims=()), FC, []),
    # transposes
    "transposes cancel": (
        lambda b, x: b.transpose(b.transpose(x, permutation=(1, 2, 0)), permutation=(2, 0, 1)),
        ((2, 3, 4),),
        [],
    ),
    "transposes compose": (
        lambda b, x: b.transpose(b.transpose(x, permutation=(1, 2, 0)), permutation=(1, 2, 0)),
        ((2, 3, 4),),
        ["transpose"],
    ),
    "transpose of ones": (lambda b, x: b.transpose(x, permutation=(0, 2, 1)), ((3, 1, 4),), ["reshape"]),
    "transpose that changes nothing": (lambda b, x: b.transpose(x, permutation=(0, 1)), FC, []),
    "transposes meet through elementwise operations": (
        lambda b, x: b.transpose(
            b.relu(b.mul(b.transpose(x, permutation=(1, 0)), b.constant(vector(3)))), permutation=(1, 0)
        ),
        FC,
        ["mul", "relu"],
    ),
    "transposes of both operands": (
        lambda b, x, y: b.add(b.transpose(x, permutation=(1, 0)), b.transpose(y, permutation=(1, 0))),
        ((3, 4), (3, 4)),
        ["add", "transpose"],
    ),
    "different transposes stay": (
        lambda b, x, y: b.add(b.transpose(x, permutation=(1, 0, 2)), b.transpose(y, permutation=(2, 0, 1))),
        ((3, 3, 3), (3, 3, 3)),
        ["transpose", "transpose", "add"],
    ),
    "a transpose that others use stays": (
        lambda b, x: (b.relu(t := b.transpose(x, permutation=(1, 0))), t),
        FC,
        ["transpose", "relu"],
    ),
    # reshapes and broadcasts
    "reshapes cancel": (lambda b, x: b.reshape(b.reshape(x, shape=(12,)), shape=(3, 4)), FC, []),
    "reshapes compose": (lambda b, x: b.reshape(b.reshape(x, shape=(12,)), shape=(2, 6)), FC, ["reshape"]),
    "broadcast before elementwise": (
        lambda b, x, y: b.add(b.broadcast_to(x, shape=(3, 4)), y),
        ((4,), (3, 4)),
        ["add"],
    ),
    "one of two broadcasts gives the shape": (
        lambda b, x, y: b.add(b.broadcast_to(x, shape=(3, 4)), b.broadcast_to(y, shape=(3, 4))),
        ((4,), (3, 1)),
        ["add"],
    ),
    "the only broadcast stays": (
        lambda b, x: b.relu(b.broadcast_to(x, shape=(3, 4))),
        ((4,),),
        ["broadcast_to", "relu"],
    ),
    "broadcasts compose": (
        lambda b, x: b.broadcast_to(b.broadcast_to(x, shape=(3, 4)), shape=(2, 3, 4)),
        ((4,),),
        ["broadcast_to"],
    ),
    "broadcast that only adds dimensions": (lambda b, x: b.broadcast_to(x, shape=(1, 3, 4)), FC, ["reshape"]),
    "broadcast to its own shape": (lambda b, x: b.broadcast_to(x, shape=(3, 4)), FC, []),
    # slices
    "slice of all": (lambda b, x: b.slice(x, starts=(0, 0), stops=(3, 4), steps=(1, 1)), FC, []),
    "slice of a slice": (
        lambda b, x: b.slice(
            b.slice(x, starts=(1, 2), stops=(9, 9), steps=(2, 1)), starts=(1, 3), stops=(4, 6), steps=(2, 1)
        ),
        ((9, 9),),
        ["slice"],
    ),
    "slice of one concatenated part": (
        lambda b, x, y: b.slice(b.concat(x, y, axis=1), starts=(0, 5), stops=(3, 7), steps=(1, 1)),
        ((3, 4), (3, 4)),
        ["slice"],
    ),
    "slice of a whole concatenated part": (
        lambda b, x, y: b.slice(b.concat(x, y, axis=1), starts=(0, 4), stops=(3, 8), steps=(1, 1)),
        ((3, 4), (3, 4)),
        [],
    ),
    "slice across parts stays": (
        lambda b, x, y: b.slice(b.concat(x, y, axis=1), starts=(0, 3), stops=(3, 7), steps=(1, 1)),
        ((3, 4), (3, 4)),
        ["concat", "slice"],
    ),
    "concatenation of neighbours": (
        lambda b, x: b.concat(
            b.slice(x, starts=(0, 0), stops=(3, 1), steps=(1, 1)),
            b.slice(x, starts=(0, 1), stops=(3, 3), steps=(1, 1)),
            b.slice(x, starts=(0, 3), stops=(3, 4), steps=(1, 1)),
            axis=1,
        ),
        FC,
        [],
    ),
    "concatenation in another order stays": (
        lambda b, x: b.concat(
            b.slice(x, starts=(0, 2), stops=(3, 4), steps=(1, 1)),
            b.slice(x, starts=(0, 0), stops=(3, 2), steps=(1, 1)),
            axis=1,
        ),
        FC,
        ["slice", "slice", "concat"],
    ),
    "concatenation of one": (lambda b, x: b.concat(x, axis=1), FC, []),
    "concatenations of concatenations": (
        lambda b, x, y: b.concat(b.concat(x, y, axis=1), x, axis=1),
        ((3, 4), (3, 2)),
        ["concat"],
    ),
    "concatenations along other axes stay": (
        lambda b, x: b.concat(b.concat(x, x, axis=0), b.concat(x, x, axis=0), axis=1),
        FC,
        ["concat", "concat"],
    ),
    # layers
    "matmul by a constant": (lambda b, x: b.matmul(x, b.constant(weight(4, 6))), FC, ["linear"]),
    "matmul by a batch of constants stays": (
        lambda b, x: b.matmul(x, b.constant(weight(2, 4, 6))),
        FC,
        ["matmul"],
    ),
    "linear + bias": (lambda b, x: b.add(linear(b, x), b.constant(vector(6))), FC, ["linear"]),
    "bias + linear + bias": (
        lambda b, x: b.add(b.constant(vector(1, 6)), linear(b, x, bias=True)),
        FC,
        ["linear"],
    ),
    "linear - scalar": (lambda b, x: b.sub(linear(b, x), 2.0), FC, ["linear"]),
    "constant - linear stays": (
        lambda b, x: b.sub(b.constant(vector(6)), linear(b, x)),
        FC,
        ["linear", "sub"],
    ),
    "linear + one number a row stays": (
        lambda b, x: b.add(linear(b, x), b.constant(vector(3, 1))),
        FC,
        ["linear", "add"],
    ),
    "linear * scale": (lambda b, x: b.mul(linear(b, x, bias=True), b.constant(vector(6))), FC, ["linear"]),
    "linear / scale": (lambda b, x: b.div(linear(b, x, bias=True), b.constant(vector(6))), FC, ["linear"]),
    "linear / 0 stays": (lambda b, x: b.div(linear(b, x), b.constant(torch.zeros(6))), FC, ["linear", "div"]),
    "scale before linear": (
        lambda b, x: linear(b, b.mul(x, b.constant(vector(4))), bias=True),
        FC,
        ["linear"],
    ),
    "shift before linear": (lambda b, x: linear(b, b.add(x, b.constant(vector(4)))), FC, ["linear"]),
    "normalization before linear": (
        lambda b, x: linear(b, b.div(b.sub(x, b.constant(vector(4))), b.constant(vector(1, 4))), bias=True),
        FC,
        ["linear"],
    ),
    "conv * scale + bias": (
        lambda b, x: b.add(b.mul(conv(b, x, bias=True), b.constant(vector(8, 1, 1))), b.constant(vector(1, 8, 1, 1))),
        IMAGE,
        ["conv"],
    ),
    "grouped conv": (
        lambda b, x: b.mul(conv(b, b.mul(x, b.constant(vector(4, 1, 1))), groups=2), b.constant(vector(8, 1, 1))),
        IMAGE,
        ["conv"],
    ),
    "conv * one number a column stays": (
        lambda b, x: b.mul(conv(b, x), b.constant(vector(5))),
        IMAGE,
        ["conv", "mul"],
    ),
    "shift before padding stays": (
        lambda b, x: conv(b, b.add(x, b.constant(vector(4, 1, 1)))),
        IMAGE,
        ["add", "conv"],
    ),
    "shift before an unpadded conv": (
        lambda b, x: conv(b, b.sub(x, b.constant(vector(4, 1, 1))), groups=2, bias=True, **CONV),
        IMAGE,
        ["conv"],
    ),
    "transposed conv": (
        lambda b, x: b.mul(
            conv_transpose(b, b.mul(x, b.constant(vector(4, 1, 1))), groups=2), b.constant(vector(8, 1, 1))
        ),
        IMAGE,
        ["conv_transpose"],
    ),
    "scaled activations that others use stay": (
        lambda b, x: (linear(b, y := b.mul(x, 3.0)), y),
        FC,
        ["mul", "linear"],
    ),
    # what is known, what is double, what is dead
    "constants": (lambda b, x: b.add(x, b.sqrt(b.mul(b.constant(ones(4)), 4.0))), FC, ["add"]),
    "twice the same": (lambda b, x: b.add(b.tanh(x), b.tanh(x)), FC, ["tanh", "add"]),
    "nearly the same stays": (
        lambda b, x: b.add(b.softmax(x, axis=0), b.softmax(x, axis=1)),
        FC,
        ["softmax", "softmax", "add"],
    ),
    "dead": (lambda b, x: (b.tanh(x), b.exp(x))[1], FC, ["exp"]),
}


@pytest.mark.parametrize("name", CASES)
def test_simplification(name: str) -> None:
    body, shapes, expected = CASES[name]
    assert operations(canonical(body, *shapes)) == expected


def test_weights_that_two_layers_share_stay_one() -> None:
    def body(b: Builder, x: Value) -> Any:
        shared = b.constant(weight(4, 4), "tied")
        return b.mul(b.linear(b.relu(b.linear(x, shared, None)), shared, None), b.constant(vector(4)))

    result = canonical(body, (3, 4))
    assert operations(result) == ["linear", "relu", "linear", "mul"]
    assert len(result.constants) == 2


def test_a_matrix_that_something_else_uses_is_not_stored_twice() -> None:
    """Tied embeddings: the transposed use becomes a linear layer on the same constant."""

    def tied(b: Builder, x: Value) -> Any:
        table = b.constant(weight(300, 1000), "embedding")
        return b.add(
            b.matmul(x, b.transpose(table, permutation=(1, 0))),
            b.matmul(x, b.transpose(table, permutation=(1, 0))),
        ), b.sum(table, dims=(1,))

    result = run_checked(Canonicalize(max_bytes=0), build(tied, (2, 1000)))
    assert [value.type.shape for value in result.constants] == [(300, 1000)]
    assert operations(result) == ["linear", "add", "sum"]

    def plain(b: Builder, x: Value) -> Any:
        table = b.constant(weight(4, 6), "table")
        return b.matmul(x, table), b.mul(table, b.sum(x, dims=(0, 1)))

    assert operations(canonical(plain, (3, 4)))[0] == "matmul"


def test_integers_keep_their_operations() -> None:
    def body(b: Builder, x: Value) -> Any:
        codes = b.cast(x, dtype=DType.I8)
        total = b.linear_integer(codes, b.constant(torch.ones(6, 4, dtype=torch.int8)), None)
        return b.mul(
            b.add(total, b.constant(torch.ones(6, dtype=torch.int32))),
            b.constant(torch.full((6,), 3, dtype=torch.int32)),
        )

    assert operations(canonical(body, (3, 4))) == ["cast", "linear_integer", "add", "mul"]


def test_names_of_outputs_survive() -> None:
    graph = build(lambda b, x: b.neg(b.add(b.tanh(x), 0.0, name_hint="kept")), (3, 4))
    assert "return %neg" in print_graph(Canonicalize()(graph).graph)


def test_count_sees_constants() -> None:
    assert count(canonical(lambda b, x: linear(b, x), (3, 4))) == {"constant": 1, "linear": 1}
