"""Operations that backends have no kernel for, written in terms of others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from whet.ir.builder import Builder
from whet.ir.dimensions import same_dim
from whet.ir.graph import Graph, Operation, Value
from whet.ir.types import DType
from whet.passes.base import Context, Pass, PassResult
from whet.passes.rewrite.expand import expand_operations

_NARROW = (DType.F16, DType.BF16)


@dataclass(frozen=True)
class DecomposeAttention(Pass):
    """attention(q, k, v, mask)  ->  matmul(softmax(matmul(q, kᵀ) · scale + mask), v).

    Query heads that share a key head become a dimension of their own, along which the keys broadcast. Which rows see
    nothing is read off the mask, whose heads and batches are mostly one, in place of the scores: a row whose scores are
    all -inf by themselves gives NaN. 16-bit floats are computed in f32 (numerics: R5).
    """

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Work on a clone; the graph itself comes back where nothing attends."""
        clone = graph.clone()
        found = expand_operations(clone, "attention", _decomposed)
        return PassResult(clone, True, {"attention": found}) if found else PassResult(graph, False)


def _decomposed(builder: Builder, operation: Operation) -> Value:
    query, key, value = (_widened(builder, operation.operand(slot)) for slot in range(3))
    mask = operation.operands[3] if len(operation.operands) > 3 else None
    result = operation.result.type
    shared = _heads_of_a_key(query, key)
    if shared > 1:
        query = _split_heads(builder, query, shared)
        key, value = (_with_dimension(builder, item, item.type.rank - 2) for item in (key, value))
        mask = None if mask is None else _mask_of_split_heads(builder, mask, shared)
    weights = _weights(builder, operation, query, key, mask)
    output = builder.matmul(weights, value)
    if shared > 1:
        output = builder.reshape(output, shape=result.shape)
    return output if output.type.dtype is result.dtype else builder.cast(output, dtype=result.dtype)


def _widened(builder: Builder, value: Value) -> Value:
    return builder.cast(value, dtype=DType.F32) if value.type.dtype in _NARROW else value


def _heads_of_a_key(query: Value, key: Value) -> int:
    """How many query heads share each of several key heads; 1 where matmul's own broadcasting is enough."""
    if query.type.rank < 3:
        return 1
    heads, groups = query.type.shape[-3], key.type.shape[-3]
    if not isinstance(heads, int) or not isinstance(groups, int) or groups in (1, heads):
        return 1
    return heads // groups


def _split_heads(builder: Builder, x: Value, shared: int) -> Value:
    """[..., H, L, E] as [..., H / shared, shared, L, E]."""
    *batch, heads, rows, columns = x.type.shape
    return builder.reshape(x, shape=(*batch, int(heads) // shared, shared, rows, columns))


def _with_dimension(builder: Builder, x: Value, dim: int) -> Value:
    """One more dimension of size 1 before `dim`."""
    shape = x.type.shape
    return builder.reshape(x, shape=(*shape[:dim], 1, *shape[dim:]))


def _mask_of_split_heads(builder: Builder, mask: Value, shared: int) -> Value:
    if mask.type.rank < 3:
        return mask
    heads = mask.type.shape[-3]
    if same_dim(heads, 1):
        return _with_dimension(builder, mask, mask.type.rank - 2)
    return _split_heads(builder, mask, shared)


def _weights(builder: Builder, operation: Operation, query: Value, key: Value, mask: Value | None) -> Value:
    """softmax of the masked scores; 0 in rows that see nothing."""
    scale, causal = operation.attributes["scale"], operation.attributes["causal"]
    factor = 1.0 / math.sqrt(_static(query.type.shape[-1], operation)) if scale is None else scale
    scores = (
        builder.matmul(query, _transposed(builder, key))
        if factor == 1.0
        else builder.mul(builder.matmul(query, _transposed(builder, key)), factor)
    )
    if mask is not None and mask.type.dtype is not DType.BOOL:
        mask = _widened(builder, mask)
    allowed = _causal(builder, scores) if causal else None
    hidden = builder.scalar(-math.inf, scores.type.dtype)
    blind = None if mask is None else _blind_rows(builder, mask, allowed, scores.type.shape[-2:])
    if mask is not None and mask.type.dtype is DType.BOOL:
        seen = mask if allowed is None else builder.logical_and(mask, allowed)
        scores = builder.where(seen, scores, hidden)
    else:
        scores = scores if allowed is None else builder.where(allowed, scores, hidden)
        scores = scores if mask is None else builder.add(scores, mask)
    weights = builder.softmax(scores, axis=scores.type.rank - 1)
    return weights if blind is None else builder.where(blind, 0.0, weights)


def _static(size: object, operation: Operation) -> int:
    if not isinstance(size, int):
        raise ValueError(f"{operation!r} at {operation.location} needs a scale: its query has {size} features")
    return size


def _transposed(builder: Builder, x: Value) -> Value:
    rank = x.type.rank
    return builder.transpose(x, permutation=(*range(rank - 2), rank - 1, rank - 2))


def _causal(builder: Builder, scores: Value) -> Value:
    """bool [L, S]: row l sees columns s <= l."""
    rows, columns = scores.type.shape[-2:]
    row = builder.reshape(builder.iota(length=rows, dtype=DType.I64), shape=(rows, 1))
    column = builder.reshape(builder.iota(length=columns, dtype=DType.I64), shape=(1, columns))
    return builder.ge(row, column)


def _blind_rows(builder: Builder, mask: Value, allowed: Value | None, scores: Sequence[object]) -> Value:
    """bool [..., L, 1] (or 1 in place of L): the mask, and causality, hide every column."""
    if mask.type.dtype is DType.BOOL:
        hides = builder.logical_not(mask)
    else:
        hides = builder.eq(mask, builder.scalar(-math.inf, mask.type.dtype))
    if allowed is not None:
        hides = builder.logical_or(hides, builder.logical_not(allowed))
    if not hides.type.rank:
        return hides
    if not same_dim(hides.type.shape[-1], 1):
        return builder.all(hides, dims=(hides.type.rank - 1,), keepdims=True)
    return hides
