"""Evaluating what is known at compile time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import sympy
import torch

from whet.errors import PassError
from whet.ir.graph import Graph, Operation, Value
from whet.ir.types import DType, TensorType
from whet.passes.base import Context, Pass, PassResult
from whet.passes.rewrite.rewriter import Rewriter

# What makes large tensors out of nothing: evaluated for what uses it, never stored in its place.
_GENERATORS: Final = frozenset({"full", "iota", "broadcast_to"})
# Stored small on purpose: unfolding it would undo a compression.
_NEVER: Final = frozenset({"constant", "dequantize", "dequantize_blocks", "masked", "lookup"})


@dataclass(frozen=True)
class ConstantFolding(Pass):
    """Replace what depends on constants alone, or has no element, by a constant, evaluated as the interpreter does.

    A result is stored where it has at most `max_bytes`, or no more bytes than the constants that it makes
    superfluous, so that folding never inflates the weights; where it may not, the operation stays.
    """

    max_bytes: int = 1 << 20

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Work on a clone; the graph itself comes back where nothing can be folded."""
        if self.max_bytes < 0:
            raise PassError(f"ConstantFolding's max_bytes must not be negative, got {self.max_bytes}")
        clone = graph.clone()
        folded = fold_constants(clone, self.max_bytes)
        return PassResult(clone, True, {"folded value": folded}) if folded else PassResult(graph, False)


def fold_constants(graph: Graph, max_bytes: int) -> int:
    """Fold constants of `graph` in place; how many values became constants."""
    known = _Known(max_bytes)
    for operation in graph.operations:
        known.visit(operation)
    chosen = _frontier(graph, known, max_bytes)
    if not chosen:
        return 0
    rewriter = Rewriter(graph)
    for operation in graph.operations:
        for value in operation.results:
            if value in chosen:
                _replace(rewriter, operation, value, known.tensors[value])
    rewriter.returned = set(graph.returns)
    rewriter.erase_unused([value.producer for value in chosen if value.producer is not None])
    rewriter.commit()
    return len(chosen)


def _replace(rewriter: Rewriter, operation: Operation, value: Value, tensor: torch.Tensor) -> None:
    rewriter.begin(operation)
    dtype = value.type.dtype if value.type.dtype is DType.I4 else None
    constant = rewriter.constant(tensor.contiguous().clone(), dtype=dtype)
    rewriter.graph.replace_value(value, constant)
    constant.name, value.name = value.name, constant.name


class _Known:
    """The tensors of values that depend on constants alone, and the constants that each depends on."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.tensors: dict[Value, torch.Tensor] = {}
        self.sources: dict[Value, frozenset[Value]] = {}

    def visit(self, operation: Operation) -> None:
        if operation.name == "constant":
            self.tensors[operation.result] = operation.attributes["tensor"]
            self.sources[operation.result] = frozenset([operation.result])
            return
        if operation.name in _NEVER or not _is_static(operation):
            return
        if all(_is_empty(value) for value in operation.results):
            for value in operation.results:
                self.tensors[value] = torch.empty(value.type.static_shape, dtype=value.type.dtype.torch)
                self.sources[value] = frozenset()
            return
        operands = [value for value in operation.operands if value is not None]
        if not all(value in self.tensors for value in operands):
            return
        sources = frozenset().union(*(self.sources[value] for value in operands))
        size = sum(byte_count(value.type) for value in operation.results)
        # an intermediate result may be this large: a generator's takes no memory where it is a view
        if operation.name not in _GENERATORS and size > max(self.max_bytes, sum(map(_source_bytes, sources))):
            return
        if operation.name in ("full", "iota") and size > self.max_bytes:
            return
        for value, tensor in zip(operation.results, self._evaluate(operation), strict=True):
            self.tensors[value] = tensor
            self.sources[value] = sources

    def _evaluate(self, operation: Operation) -> tuple[torch.Tensor, ...]:
        operands = [None if value is None else self.tensors[value] for value in operation.operands]
        with torch.no_grad():
            result = operation.definition.evaluate(*operands, **operation.attributes)
        return result if isinstance(result, tuple) else (result,)


def _frontier(graph: Graph, known: _Known, max_bytes: int) -> set[Value]:
    """The fewest known values that what is unknown needs, and that are worth being stored."""
    returned = set(graph.returns)
    chosen: set[Value] = set()
    needed: set[Operation] = set()
    for operation in reversed(graph.operations):
        if operation.name == "constant":
            continue
        is_known = all(value in known.tensors for value in operation.results)
        wanted = [
            value for value in operation.results if value in returned or any(user in needed for user, _ in value.uses)
        ]
        if not is_known:
            needed.add(operation)
        elif wanted and all(_may_store(value, known, max_bytes) for value in wanted):
            chosen.update(wanted)
        elif wanted:
            needed.add(operation)
    return chosen


def _may_store(value: Value, known: _Known, max_bytes: int) -> bool:
    producer = value.producer
    assert producer is not None
    if _is_empty(value):
        return True
    if producer.name in _GENERATORS:
        return producer.name == "full" and value.type.rank == 0
    size = byte_count(value.type)
    spared = [source for source in known.sources[value] if all(_is_known(user, known) for user in source.users)]
    return size <= max(max_bytes, sum(map(_source_bytes, spared)))


def _is_known(operation: Operation, known: _Known) -> bool:
    return all(value in known.tensors for value in operation.results)


def _source_bytes(value: Value) -> int:
    return byte_count(value.type)


def byte_count(type: TensorType) -> int:
    """Bytes of a tensor with static shape."""
    count = type.dtype.bits
    for size in type.static_shape:
        count *= size
    return count // 8


def _is_empty(value: Value) -> bool:
    """Whether it is known to have no element: then it depends on nothing."""
    return 0 in value.type.shape and value.type.is_static


def _is_static(operation: Operation) -> bool:
    return all(value.type.is_static for value in operation.results) and not _has_symbols(operation.attributes)


def _has_symbols(attribute: Any) -> bool:
    if isinstance(attribute, Mapping):
        return any(map(_has_symbols, attribute.values()))
    if isinstance(attribute, tuple | list):
        return any(map(_has_symbols, attribute))
    return isinstance(attribute, sympy.Expr)
