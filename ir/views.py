"""The graph as networkx graphs: operations and data flow, dimensions and what ties them, and what prunes
together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx

from whet.errors import PassError
from whet.ir.definition import Axis, IndexMap, Tie
from whet.ir.dimensions import Dim
from whet.ir.graph import Graph, Operation, Value

Dimension = tuple[str, int]
"""(value name, dimension)."""


def operation_graph(graph: Graph) -> nx.DiGraph:
    """Operations as nodes, values as edges from their producer to their users.

    A node is ("input", i), ("state", i), ("operation", i), ("output", i) or ("state_output", i), with node
    data `label`, and `operation` or `value`; edge data `values` is the list of names that flow along the
    edge.
    """
    view: nx.DiGraph = nx.DiGraph(name=graph.name)
    sources: dict[Value, tuple[str, int]] = {}
    for index, value in enumerate(graph.inputs):
        sources[value] = ("input", index)
        view.add_node(("input", index), label=f"%{value.name}", value=value)
    for index, slot in enumerate(graph.state):
        sources[slot.input] = ("state", index)
        view.add_node(("state", index), label=f"%{slot.input.name}", value=slot.input)
    for index, operation in enumerate(graph.operations):
        node = ("operation", index)
        view.add_node(node, label=operation.name, operation=operation)
        sources.update((value, node) for value in operation.results)
        for operand in operation.operands:
            if operand is not None:
                _add_flow(view, sources[operand], node, operand)
    for kind, values in (("output", graph.outputs), ("state_output", [slot.output for slot in graph.state])):
        for index, value in enumerate(values):
            view.add_node((kind, index), label=f"%{value.name}", value=value)
            _add_flow(view, sources[value], (kind, index), value)
    return view


def _add_flow(view: nx.DiGraph, source: tuple[str, int], target: tuple[str, int], value: Value) -> None:
    if not view.has_edge(source, target):
        view.add_edge(source, target, values=[])
    names = view.edges[source, target]["values"]
    if value.name not in names:
        names.append(value.name)


def tie_graph(graph: Graph) -> nx.MultiGraph:
    """Dimensions of values as nodes (value name, dim), ties of operations as edges.

    Node data: `size`, and `pinned`, the reason why no index of it can be removed, or None: it is a dimension
    of an input, output or state, or an operation has no tie for it. Edge data: `operation`, `tie`, and
    `left`, the node that is the left side of the tie.
    """
    view: nx.MultiGraph = nx.MultiGraph(name=graph.name)
    for value in graph.values():
        for dim, size in enumerate(value.type.shape):
            view.add_node((value.name, dim), size=size, pinned=None)
    for value in graph.arguments:
        _pin(view, value, f"%{value.name} is an input or state of the graph")
    for operation in graph.operations:
        _add_ties(view, operation)
    for value in graph.returns:
        _pin(view, value, f"%{value.name} is an output or state of the graph")
    return view


def _pin(view: nx.MultiGraph, value: Value, reason: str) -> None:
    for dim in range(value.type.rank):
        view.nodes[value.name, dim]["pinned"] = view.nodes[value.name, dim]["pinned"] or reason


def _add_ties(view: nx.MultiGraph, operation: Operation) -> None:
    if operation.name == "constant":  # it may lose any index
        return
    mentioned: set[Dimension] = set()
    for tie in operation.definition.axes(operation):
        left, right = dimension_of(operation, tie.left), dimension_of(operation, tie.right)
        mentioned |= {left, right}
        view.add_edge(left, right, operation=operation, tie=tie, left=left)
    for value in (*operation.operands, *operation.results):
        for dim in range(0 if value is None else value.type.rank):
            if value is None or (value.name, dim) in mentioned:
                continue
            node = view.nodes[value.name, dim]
            node["pinned"] = node["pinned"] or f"{operation!r} says nothing of dimension {dim} of %{value.name}"


def dimension_of(operation: Operation, axis: Axis) -> Dimension:
    """The value and dimension that an axis of a tie speaks of."""
    value = operation.operand(axis.slot) if axis.slot >= 0 else operation.results[-1 - axis.slot]
    return value.name, axis.dim


def dependency_groups(graph: Graph) -> list[frozenset[Dimension]]:
    """Dimensions that depend on each other in any way: the connected components of `tie_graph`, the largest
    first.
    """
    components = (frozenset(component) for component in nx.connected_components(tie_graph(graph)))
    return sorted(components, key=lambda component: (-len(component), min(component)))


@dataclass(frozen=True)
class _Side:
    """One end of a tie, seen from its dimension: the class of an index here, and the members of a class on
    both ends.
    """

    operation: Operation
    node: Dimension
    other: Dimension
    key: IndexMap
    members: Mapping[int, frozenset[int]]
    other_members: Mapping[int, frozenset[int]]


def coupled_indices(ties: nx.MultiGraph, seed: Mapping[Dimension, Iterable[int]]) -> dict[Dimension, frozenset[int]]:
    """Everything that must be removed together with `seed`, after the rule of `definition.Tie`.

    Args:
        ties: what `tie_graph` gave.
        seed: indices to remove, by dimension.

    An index that may not go alone takes the first class of its operation's ties with it that it is in:
    operations name whole blocks (heads, groups of channels) before strided ones. The seed is part of the
    result.

    Raises PassError where a pinned, symbolic or whole dimension would have to go, naming it and the reason.
    """
    closure = _Closure(ties)
    closure.remove((node, index) for node, indices in seed.items() for index in indices)
    return {node: frozenset(indices) for node, indices in closure.removed.items()}


class _Closure:
    """What is removed so far, and the removed indices that no complete class justifies yet."""

    def __init__(self, ties: nx.MultiGraph) -> None:
        self.ties = ties
        self.removed: defaultdict[Dimension, set[int]] = defaultdict(set)
        self.unjustified: dict[tuple[Dimension, int], None] = {}
        self._sides: dict[Dimension, list[list[_Side]]] = {}

    def remove(self, items: Iterable[tuple[Dimension, int]]) -> None:
        """Remove these and what that forces; only then enlarge what is in no complete class yet."""
        waiting = list(items)
        while waiting:
            while waiting:
                node, index = waiting.pop()
                if index not in self.removed[node]:
                    self._remove(node, index)
                    waiting += self._forced(node, index)
            waiting = self._enlarged()

    def _remove(self, node: Dimension, index: int) -> None:
        if node not in self.ties:
            raise PassError(f"there is no dimension {node[1]} of %{node[0]}")
        size, pinned = self.ties.nodes[node]["size"], self.ties.nodes[node]["pinned"]
        if pinned is not None:
            raise PassError(f"dimension {node[1]} of %{node[0]} cannot shrink: {pinned}")
        if not isinstance(size, int) or not 0 <= index < size:
            raise PassError(f"dimension {node[1]} of %{node[0]} has size {size}, there is no index {index} to remove")
        if len(self.removed[node]) + 1 == size:
            raise PassError(f"nothing would be left of dimension {node[1]} of %{node[0]}, of size {size}")
        self.removed[node].add(index)
        self.unjustified[node, index] = None

    def sides(self, node: Dimension) -> list[list[_Side]]:
        """The ends of ties at a dimension, a list for each operation."""
        if node not in self._sides:
            by_operation: defaultdict[Operation, list[_Side]] = defaultdict(list)
            for side in _sides(self.ties, node):
                by_operation[side.operation].append(side)
            self._sides[node] = list(by_operation.values())
        return self._sides[node]

    def _forced(self, node: Dimension, index: int) -> list[tuple[Dimension, int]]:
        """The other ends of the classes that `index` completes."""
        return [
            (side.other, item)
            for group in self.sides(node)
            for side in group
            if self._complete(side, index)
            for item in side.other_members.get(side.key(index), ())
        ]

    def _complete(self, side: _Side, index: int) -> bool:
        return side.members[side.key(index)] <= self.removed[side.node]

    def _enlarged(self) -> list[tuple[Dimension, int]]:
        """The class to remove for the first index that some operation does not let go alone."""
        while self.unjustified:
            node, index = next(iter(self.unjustified))
            for group in self.sides(node):
                if not any(self._complete(side, index) for side in group):
                    return [(node, item) for item in group[0].members[group[0].key(index)]]
            del self.unjustified[node, index]
        return []


def _sides(ties: nx.MultiGraph, node: Dimension) -> list[_Side]:
    found = []
    for _, neighbour, data in ties.edges(node, data=True):
        tie: Tie = data["tie"]
        left: Dimension = data["left"]
        right = neighbour if left == node else node
        members = (
            _classes(ties.nodes[left]["size"], tie.left_map),
            _classes(ties.nodes[right]["size"], tie.right_map),
        )
        if left == node:
            found.append(_Side(data["operation"], left, right, tie.left_map, members[0], members[1]))
        if right == node:
            found.append(_Side(data["operation"], right, left, tie.right_map, members[1], members[0]))
    return found


def _classes(size: Dim, index_map: IndexMap) -> dict[int, frozenset[int]]:
    members: defaultdict[int, set[int]] = defaultdict(set)
    for index in range(size if isinstance(size, int) else 0):
        members[index_map(index)].add(index)
    return {key: frozenset(value) for key, value in members.items()}
