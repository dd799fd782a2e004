"""Views, and the proof of the ties: a graph that lost a coupled set of indices computes what the whole one
does with
the inputs of that set at zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ir.samples import conv, rand, randn, transposed
from whet.errors import PassError
from whet.ir import Builder, DType, Graph, Interpreter, Operation, StateSlot, TensorType, Value, verify
from whet.ir.views import coupled_indices, dependency_groups, operation_graph, tie_graph

Removed = Mapping[tuple[str, int], frozenset[int]]
Attributes = Callable[[Operation, Mapping[Value, Value]], dict[str, Any]]


def constant(builder: Builder, name: str, *shape: int, positive: bool = False) -> Value:
    return builder.constant((rand if positive else randn)(*shape), key=name)


def start(*shape: int) -> tuple[Graph, Builder, Value]:
    graph = Graph()
    builder = Builder(graph)
    return graph, builder, builder.input("x", TensorType(shape, DType.F64))


def chain() -> Graph:
    """conv, batch norm, relu, a residual sum, pooling, flatten, linear."""
    graph, b, x = start(2, 3, 6, 6)
    first = b.conv(x, constant(b, "w1", 8, 3, 3, 3), constant(b, "b1", 8), **conv(2, padding=((1, 1), (1, 1))))
    y = b.batch_norm(first, constant(b, "mean", 8), constant(b, "var", 8, positive=True), constant(b, "gain", 8), None)
    y = b.relu(y)
    y = b.conv(y, constant(b, "w2", 8, 8, 3, 3), None, **conv(2, padding=((1, 1), (1, 1))))
    y = b.add(y, first)
    y = b.adaptive_avg_pool(y, size=(2, 2))
    y = b.reshape(y, shape=(2, 32))
    graph.outputs = [b.linear(y, constant(b, "w3", 5, 32), None)]
    return graph


def grouped() -> Graph:
    """A pointwise, a grouped, a group norm and a pointwise convolution."""
    graph, b, x = start(2, 3, 5, 5)
    y = b.conv(x, constant(b, "w1", 8, 3, 1, 1), None, **conv(2))
    y = b.conv(y, constant(b, "w2", 12, 2, 3, 3), constant(b, "b2", 12), **conv(2, groups=4))
    y = b.conv(y, constant(b, "w3", 6, 12, 1, 1), None, **conv(2))
    graph.outputs = [y]
    return graph


def depthwise() -> Graph:
    """A pointwise, a depthwise, a transposed depthwise and a pointwise convolution."""
    graph, b, x = start(2, 3, 5, 5)
    y = b.conv(x, constant(b, "w1", 8, 3, 1, 1), None, **conv(2))
    y = b.conv(y, constant(b, "w2", 16, 1, 3, 3), constant(b, "b2", 16), **conv(2, groups=8))
    y = b.conv_transpose(y, constant(b, "w3", 16, 1, 2, 2), None, **transposed(2, groups=16))
    graph.outputs = [b.conv(y, constant(b, "w4", 6, 16, 1, 1), None, **conv(2))]
    return graph


def attention(groups: int) -> Callable[[], Graph]:
    """Four query heads of 6 over `groups` key heads."""

    def make() -> Graph:
        graph, b, x = start(2, 5, 10)
        heads = []
        for name, count in (("q", 4), ("k", groups), ("v", groups)):
            y = b.linear(x, constant(b, f"w{name}", count * 6, 10), constant(b, f"b{name}", count * 6))
            heads.append(b.transpose(b.reshape(y, shape=(2, 5, count, 6)), permutation=(0, 2, 1, 3)))
        y = b.attention(*heads, scale=0.4)
        y = b.reshape(b.transpose(y, permutation=(0, 2, 1, 3)), shape=(2, 5, 24))
        graph.outputs = [b.linear(y, constant(b, "wo", 10, 24), constant(b, "bo", 10))]
        return graph

    return make


def concatenated() -> Graph:
    """Two convolutions side by side, cut apart again."""
    graph, b, x = start(2, 3, 6)
    left = b.conv(x, constant(b, "w1", 4, 3, 3), None, **conv(1))
    right = b.conv(x, constant(b, "w2", 5, 3, 3), None, **conv(1))
    y = b.relu(b.concat(left, right, axis=1))
    y = b.conv_transpose(y, constant(b, "w3", 9, 6, 2), constant(b, "b3", 6), **transposed(1))
    graph.outputs = [b.conv(b.silu(y), constant(b, "w4", 2, 6, 1), None, **conv(1))]
    return graph


def shrink(graph: Graph, removed: Removed) -> Graph:
    """The graph again, its constants without the removed indices, sizes in attributes as they became."""
    small = Graph()
    builder = Builder(small)
    values: dict[Value, Value] = {value: builder.input(value.name, value.type) for value in graph.inputs}
    for operation in graph.operations:
        attributes = dict(operation.attributes)
        if operation.name == "constant":
            attributes["tensor"] = keep(attributes["tensor"], operation.result.name, removed)
        for key in ("shape",):
            if key in attributes:
                gone = [len(removed.get((operation.result.name, dim), ())) for dim in range(len(attributes[key]))]
                attributes[key] = tuple(size - less for size, less in zip(attributes[key], gone, strict=True))
        if attributes.get("groups", 1) > 1:
            attributes["groups"] = groups_left(operation, removed)
        operands = [None if value is None else values[value] for value in operation.operands]
        emitted = builder.emit(operation.name, operands, attributes, operation.results[0].name)
        values.update(zip(operation.results, emitted.results, strict=True))
    small.outputs = [values[value] for value in graph.outputs]
    return small


def groups_left(operation: Operation, removed: Removed) -> int:
    groups: int = operation.attributes["groups"]
    value = operation.operand(0)
    gone = removed.get((value.name, 1), frozenset())
    block = int(value.type.shape[1]) // groups
    return sum(1 for group in range(groups) if not set(range(group * block, (group + 1) * block)) <= gone)


def keep(tensor: Tensor, name: str, removed: Removed) -> Tensor:
    for dim in range(tensor.dim()):
        gone = removed.get((name, dim), frozenset())
        tensor = tensor.index_select(dim, torch.tensor([i for i in range(tensor.shape[dim]) if i not in gone]))
    return tensor


def silence(graph: Graph, removed: Removed, readers: Iterable[str]) -> dict[str, Tensor]:
    """Overrides with zeros where the constants that read the removed indices meet them."""
    zeroed = {}
    for value in graph.constants:
        if value.name not in readers or value.constant is None:
            continue
        tensor = value.constant.clone()
        for (name, dim), indices in removed.items():
            if name == value.name:
                tensor.index_fill_(dim, torch.tensor(sorted(indices)), 0.0)
        zeroed[value.name] = tensor
    return zeroed


# (graph, first removed, constants that read what goes, how many indices of which constants go)
CASES: list[tuple[Callable[[], Graph], dict[tuple[str, int], list[int]], list[str], dict[tuple[str, int], int]]] = [
    (chain, {("w1", 0): [2, 5]}, ["w2", "w3"], {("w1", 0): 2, ("mean", 0): 2, ("w2", 0): 2, ("w3", 1): 8}),
    (chain, {("w2", 1): [0]}, ["w2", "w3"], {("w1", 0): 1, ("b1", 0): 1, ("w2", 1): 1, ("w3", 1): 4}),
    (grouped, {("w1", 0): [0]}, ["w3"], {("w1", 0): 2, ("w2", 0): 3, ("b2", 0): 3, ("w3", 1): 3}),
    (grouped, {("w3", 1): [4]}, ["w3"], {("w1", 0): 2, ("w2", 0): 3, ("w3", 1): 3}),
    (grouped, {("w2", 1): [1]}, ["w2"], {("w1", 0): 4, ("w2", 1): 1}),
    (depthwise, {("w1", 0): [3]}, ["w4"], {("w1", 0): 1, ("w2", 0): 2, ("w3", 0): 2, ("w4", 1): 2}),
    (depthwise, {("w4", 1): [0]}, ["w4"], {("w1", 0): 1, ("w2", 0): 2, ("w3", 0): 2, ("w4", 1): 2}),
    (attention(4), {("wq", 0): [7]}, ["wo"], {("wq", 0): 6, ("wk", 0): 6, ("bv", 0): 6, ("wo", 1): 6}),
    (attention(2), {("wo", 1): [23]}, ["wo"], {("wq", 0): 12, ("wk", 0): 6, ("wv", 0): 6, ("wo", 1): 12}),
    (attention(1), {("wq", 0): [0]}, ["wo"], {("wq", 0): 6, ("wo", 1): 6}),
    (concatenated, {("w2", 0): [1]}, ["w3"], {("w2", 0): 1, ("w3", 0): 1}),
    (concatenated, {("w3", 0): [1]}, ["w3"], {("w1", 0): 1, ("w3", 0): 1}),
    (concatenated, {("b3", 0): [1]}, ["w4"], {("w3", 1): 1, ("w4", 1): 1}),
]


@pytest.mark.parametrize("make, seed, readers, counts", CASES)
def test_what_goes_together_leaves_a_graph_that_computes_the_same(
    make: Callable[[], Graph],
    seed: dict[tuple[str, int], list[int]],
    readers: list[str],
    counts: dict[tuple[str, int], int],
) -> None:
    graph = make()
    verify(graph)
    removed = coupled_indices(tie_graph(graph), seed)
    constants = {value.name for value in graph.constants}
    for node, count in counts.items():
        assert len(removed[node]) == count, node
    assert {name for name, _ in removed if name in constants} >= {name for name, _ in counts}
    x = randn(*(int(dim) for dim in graph.inputs[0].type.shape))
    (expected,) = Interpreter(graph, silence(graph, removed, readers))(x)
    small = shrink(graph, removed)
    verify(small)
    (result,) = Interpreter(small)(x)
    torch.testing.assert_close(result, expected)


PINNED = [
    (chain, {("w3", 0): [0]}, "is an output or state"),
    (chain, {("w1", 1): [0]}, "is an input or state"),
    (chain, {("w1", 2): [0]}, "says nothing of dimension 2"),
    (chain, {("w1", 0): [8]}, "there is no index 8"),
    (chain, {("w1", 0): list(range(8))}, "nothing would be left of dimension 0 of %"),
    (chain, {("w9", 0): [0]}, "no dimension 0 of %w9"),
]


@pytest.mark.parametrize("make, seed, message", PINNED)
def test_what_cannot_go_is_refused_with_the_reason(
    make: Callable[[], Graph], seed: dict[tuple[str, int], list[int]], message: str
) -> None:
    with pytest.raises(PassError, match=message):
        coupled_indices(tie_graph(make()), seed)


def test_operation_graph() -> None:
    graph, b, x = start(2, 3)
    value = Value("state", TensorType((2, 3), DType.F64))
    slot = StateSlot(value, value, torch.zeros(2, 3))
    graph.state.append(slot)
    slot.output = b.add(value, x)
    graph.outputs = [b.mul(slot.output, slot.output)]
    view = operation_graph(graph)
    assert set(view.edges) == {
        (("input", 0), ("operation", 0)), (("state", 0), ("operation", 0)),
        (("operation", 0), ("operation", 1)),
        (("operation", 1), ("output", 0)), (("operation", 0), ("state_output", 0)),
    }  # fmt: skip
    assert view.edges[("operation", 0), ("operation", 1)]["values"] == ["add"]
    assert view.nodes["operation", 1]["operation"] is graph.operations[1]
    assert view.nodes["input", 0]["label"] == "%x"


def test_dependency_groups() -> None:
    groups = dependency_groups(chain())
    channels = next(group for group in groups if ("w1", 0) in group)
    assert {("mean", 0), ("gain", 0), ("conv", 1), ("w2", 0), ("w2", 1), ("w3", 1)} <= channels
    assert ("w1", 1) not in channels
    assert ("w3", 0) not in channels
