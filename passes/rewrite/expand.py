"""Putting several operations in the place of every operation of one kind."""

from __future__ import annotations

from collections.abc import Callable

from whet.ir.builder import Builder
from whet.ir.graph import Graph, Operation, Value


def expand_operations(graph: Graph, name: str, expanded: Callable[[Builder, Operation], Value]) -> int:
    """Put what `expanded` builds before each operation called `name` in its place; how many there were.

    Works in place, on operations of one result; what becomes unused besides stays.
    """
    found = [operation for operation in graph.operations if operation.name == name]
    builder = Builder(graph)
    for operation in found:
        builder.before, builder.location = operation, operation.location
        graph.replace_value(operation.result, expanded(builder, operation))
        graph.erase(operation)
    return len(found)
