"""The graph as networkx graphs: operations and data flow, dimensions and what ties them, and what prunes
together.
"""

from __future__ import annotations

import networkx as nx

from whet.ir.coupling import Dimension, coupled_indices
from whet.ir.definition import Axis
from whet.ir.graph import Graph, Operation, Value

__all__ = ["Dimension", "coupled_indices", "dependency_groups", "dimension_of", "operation_graph", "tie_graph"]


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
    if operation.definition.independent:
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
