"""Hypothesis strategies that several test files share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from whet.ir import Builder, DimRange, DType, Graph, Location, StateSlot, TensorType, Value
from whet.ir.dimensions import Dim, floor_div, substitute, symbol

Draw = Callable[[st.SearchStrategy[Any]], Any]
BATCH = "s0"

_UNARY = ("relu", "tanh", "sigmoid", "neg", "abs", "exp", "gelu", "softplus")
_BINARY = ("add", "sub", "mul", "maximum")
_sizes = st.integers(1, 4)


def dims(names: tuple[str, ...] = ("s0", "s1"), depth: int = 3) -> st.SearchStrategy[Dim]:
    """Integer expressions over symbols: sums, products, floor divisions."""
    leaves = st.one_of(st.integers(-9, 9), st.sampled_from(names).map(symbol))
    return st.recursive(leaves, _combined, max_leaves=2**depth)


def _combined(inner: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        pairs.map(lambda pair: pair[0] + pair[1]),
        pairs.map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, st.integers(1, 5)).map(lambda pair: floor_div(*pair)),
    )


@st.composite
def random_graphs(draw: Draw, symbolic: bool | None = None, largest: int = 8) -> Graph:
    """Well-formed f32 graphs of up to `largest` operations, constants not counted.

    They use linear, elementwise, shape and reduction operations, constants of every kind (keyed, scalar,
    tied), locations, and sometimes state. `symbolic`: whether the first dimension of the inputs is the symbol
    s0 (None: drawn).
    """
    graph = Graph(name=draw(st.sampled_from(("main", "a.b", "odd name"))))
    builder = Builder(graph)
    batch: Dim = draw(_sizes)
    if draw(st.booleans()) if symbolic is None else symbolic:
        batch = symbol(BATCH)
        graph.dimensions[BATCH] = draw(st.sampled_from((DimRange(), DimRange(2, 8), DimRange(1, None, 1))))
    for index in range(draw(st.integers(1, 2))):
        rest = tuple(draw(st.lists(_sizes, min_size=1, max_size=2)))
        builder.input(f"x{index}", TensorType((batch, *rest), DType.F32))
    values = list(graph.inputs)
    if draw(st.booleans()):
        values.append(_add_state(draw, graph))
    for _ in range(draw(st.integers(1, largest))):
        line = draw(st.integers(0, 3))
        builder.location = Location("net.0", 'file "x".py', line) if line else Location()
        values.append(_step(draw, builder, draw(st.sampled_from(values))))
    graph.outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    if graph.state:
        slot = graph.state[0]
        slot.output = builder.add(slot.input, 1.0)
    if draw(st.booleans()):
        graph.output_names = [f"out.{index}" for index in range(len(graph.outputs))]
        leaves = [{"kind": "leaf", "index": index} for index in range(len(graph.outputs))]
        graph.output_structure = {"kind": "tuple", "items": leaves}
    return graph


def _add_state(draw: Draw, graph: Graph) -> Value:
    shape = tuple(draw(st.lists(_sizes, max_size=2)))
    value = Value("state", TensorType(shape, DType.F32))
    graph.state.append(StateSlot(value, value, _tensor(draw, shape)))
    return value


def _tensor(draw: Draw, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))


def _step(draw: Draw, builder: Builder, value: Value) -> Value:
    name = draw(st.sampled_from(sorted(_STEPS)))
    result: Value = _STEPS[name](draw, builder, value)
    return result


def _unary(draw: Draw, builder: Builder, value: Value) -> Any:
    return getattr(builder, draw(st.sampled_from(_UNARY)))(value)


def _binary(draw: Draw, builder: Builder, value: Value) -> Any:
    same = [other for other in builder.graph.values() if other.type == value.type]
    number = draw(st.floats(-4, 4, width=32))
    return getattr(builder, draw(st.sampled_from(_BINARY)))(value, draw(st.sampled_from([*same, number])))


def _linear(draw: Draw, builder: Builder, value: Value) -> Any:
    if value.type.rank == 0 or not isinstance(value.type.shape[-1], int):
        return _unary(draw, builder, value)
    shape = draw(_sizes), int(value.type.shape[-1])
    tied = [other for other in builder.graph.constants if other.type.shape == shape]
    weight = draw(st.sampled_from(tied)) if tied else builder.constant(_tensor(draw, shape), key="layer.weight")
    bias = builder.constant(_tensor(draw, shape[:1])) if draw(st.booleans()) else None
    return builder.linear(value, weight, bias)


def _transpose(draw: Draw, builder: Builder, value: Value) -> Any:
    return builder.transpose(value, permutation=tuple(draw(st.permutations(range(value.type.rank)))))


def _reshape(draw: Draw, builder: Builder, value: Value) -> Any:
    static = [dim for dim in value.type.shape if isinstance(dim, int)]
    symbols = tuple(dim for dim in value.type.shape if not isinstance(dim, int))
    return builder.reshape(value, shape=(*symbols, 1, math.prod(static)))


def _concat(draw: Draw, builder: Builder, value: Value) -> Any:
    if value.type.rank == 0:
        return builder.neg(value)
    return builder.concat(value, value, axis=draw(st.integers(0, value.type.rank - 1)))


def _slice(draw: Draw, builder: Builder, value: Value) -> Any:
    shape = value.type.shape
    starts = tuple(draw(st.integers(0, dim - 1)) if isinstance(dim, int) else 0 for dim in shape)
    return builder.slice(value, starts=starts, stops=shape, steps=tuple(draw(st.integers(1, 2)) for _ in shape))


def _softmax(draw: Draw, builder: Builder, value: Value) -> Any:
    return builder.softmax(value, axis=draw(st.integers(0, max(value.type.rank - 1, 0))))


def _sum(draw: Draw, builder: Builder, value: Value) -> Any:
    chosen = tuple(dim for dim in range(value.type.rank) if draw(st.booleans()))
    return builder.sum(value, dims=chosen, keepdims=draw(st.booleans()))


_STEPS: dict[str, Callable[[Draw, Builder, Value], Any]] = {
    "unary": _unary,
    "binary": _binary,
    "linear": _linear,
    "transpose": _transpose,
    "reshape": _reshape,
    "concat": _concat,
    "slice": _slice,
    "softmax": _softmax,
    "sum": _sum,
}


def example_inputs(graph: Graph, seed: int = 0, batch: int = 3) -> list[torch.Tensor]:
    """Random f32 inputs for a graph of `random_graphs`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [substitute(value.type.shape, {BATCH: batch}) for value in graph.inputs]
    return [torch.randn(shape, generator=generator) for shape in shapes]
