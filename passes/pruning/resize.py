"""Removing indices of dimensions from a graph: smaller constants, and attributes that follow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from whet.errors import InternalError
from whet.ir.coupling import Dimension
from whet.ir.definition import Axis, InferError, Kept, kept_shape
from whet.ir.graph import Graph, Operation, Value
from whet.ir.types import TensorType

Removed = Mapping[Dimension, Collection[int]]
"""Indices to remove, by (value name, dimension)."""


def resize(graph: Graph, removed: Removed) -> Graph:
    """The graph without these indices.

    Args:
        graph: stays as it is; tensors that do not shrink are shared.
        removed: closed under the ties of the operations, as `whet.ir.coupling.Coupling.close` makes it.

    Raises InternalError where an operation's result does not get the size that `removed` leaves of it: then its
    `axes` and its `resized` contradict each other.
    """
    clone = graph.clone()
    kept = _kept(clone, removed)
    shrinking = {operation: mine for operation in clone.operations if (mine := _kept_of(operation, kept))}
    # `resized` is told of operations as they were, so all are asked before the first one changes
    attributes = {operation: operation.definition.resized(operation, mine) for operation, mine in shrinking.items()}
    for operation, mine in shrinking.items():
        _shrink(operation, attributes[operation], mine)
    return clone


def _kept(graph: Graph, removed: Removed) -> dict[Value, dict[int, tuple[int, ...]]]:
    """The indices that are left of the dimensions that shrink, by value and dimension."""
    values = {value.name: value for value in graph.values()}
    found: dict[Value, dict[int, tuple[int, ...]]] = {}
    left: dict[tuple[int, frozenset[int]], tuple[int, ...]] = {}
    for (name, dim), indices in removed.items():
        size, gone = values[name].type.shape[dim], frozenset(indices)
        if not gone:
            continue
        assert isinstance(size, int)
        if (size, gone) not in left:
            left[size, gone] = tuple(index for index in range(size) if index not in gone)
        found.setdefault(values[name], {})[dim] = left[size, gone]
    return found


def _kept_of(operation: Operation, kept: Mapping[Value, Mapping[int, tuple[int, ...]]]) -> Kept:
    slots = [*enumerate(operation.operands), *((-1 - place, value) for place, value in enumerate(operation.results))]
    return {
        Axis(slot, dim): indices
        for slot, value in slots
        if value is not None
        for dim, indices in kept.get(value, {}).items()
    }


def _shrink(operation: Operation, attributes: dict[str, Any], kept: Kept) -> None:
    """Give the operation its new attributes and its results their new types; its operands have theirs already."""
    expected = [
        TensorType(kept_shape(value.type.shape, kept, -1 - place), value.type.dtype)
        for place, value in enumerate(operation.results)
    ]
    operands = [None if value is None else value.type for value in operation.operands]
    try:
        types = operation.definition.result_types(operands, attributes)
    except InferError as error:
        raise InternalError(f"{operation!r} at {operation.location} cannot shrink: {error}") from error
    for value, found, wanted in zip(operation.results, types, expected, strict=True):
        if not found.same_as(wanted):
            raise InternalError(f"{operation!r} at {operation.location} shrinks to {found}, not to {wanted}")
        value.type = found
    operation.attributes = attributes
