"""Computing once what is computed twice."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from whet.ir.graph import Graph, Operation, Value
from whet.passes.base import Context, Pass, PassResult


@dataclass(frozen=True)
class CommonSubexpressionElimination(Pass):
    """Merge operations with equal operands and attributes, and (unless told not to) equal constants.

    Merged constants are tied from then on: a pass that trains them sees one parameter.
    """

    constants: bool = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Work on a clone; the graph itself comes back where nothing is computed twice."""
        clone = graph.clone()
        merged = merge_common_subexpressions(clone, self.constants)
        return PassResult(clone, True, {"merged operation": merged}) if merged else PassResult(graph, False)


def merge_common_subexpressions(graph: Graph, constants: bool = True) -> int:
    """Merge equal operations of `graph` in place, the first of them stays; how many went."""
    first: dict[Hashable, Operation] = {}
    seen = _Constants()
    kept = []
    for operation in graph.operations:
        if operation.name == "constant":
            twin = seen.twin_of(operation) if constants else operation
        else:
            twin = first.setdefault(_key(operation), operation)
        if twin is operation:
            kept.append(operation)
            continue
        for old, new in zip(operation.results, twin.results, strict=True):
            graph.replace_value(old, new)
        operation.drop_operands()
    merged = len(graph.operations) - len(kept)
    graph.operations = kept
    return merged


def _key(operation: Operation) -> Hashable:
    operands: tuple[Value | None, ...] = tuple(operation.operands)
    attributes = tuple(sorted((key, _frozen(value)) for key, value in operation.attributes.items()))
    return operation.name, operands, attributes


def _frozen(value: Any) -> str:
    """Text that tells 1, 1.0 and True apart, and 0.0 from -0.0."""
    return f"{type(value).__name__}:{value!r}"


class _Constants:
    """Constants seen so far, by type and first bytes; only those that agree in them are compared in full."""

    def __init__(self) -> None:
        self.seen: dict[Hashable, list[Operation]] = {}

    def twin_of(self, operation: Operation) -> Operation:
        """The first constant with the content of this one: itself, where it is the first."""
        tensor: torch.Tensor = operation.attributes["tensor"]
        start = _bits(tensor.reshape(-1)[:_START])
        key = (operation.result.type, bytes(start.numpy().data) if start.numel() else b"")
        alike = self.seen.setdefault(key, [])
        for other in alike:
            if _equal(tensor, other.attributes["tensor"]):
                return other
        alike.append(operation)
        return operation


_START = 64


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors of one dtype and shape have equal bits: NaNs too, and zeros of one sign."""
    same_storage = left.data_ptr() == right.data_ptr() and left.stride() == right.stride()
    return same_storage or torch.equal(_bits(left), _bits(right))
