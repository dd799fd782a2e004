"""Embeddings and bags of them, one-hot vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from whet.frontend.context import Context
from whet.frontend.converters.common import aligned, iota
from whet.frontend.converters.shape import slice_dim
from whet.ir.graph import Value
from whet.ir.types import DType

aten = torch.ops.aten

_MEAN, _MAX = 1, 2


def _embedding(c: Context, weight: Value, indices: Value, *_: Any) -> Value:
    result: Value = c.take(weight, indices, axis=0)
    return result


def _embedding_bag(
    c: Context,
    weight: Value,
    indices: Value,
    offsets: Value,
    _scale_grad: bool = False,
    mode: int = 0,
    _sparse: bool = False,
    sample_weights: Value | None = None,
    include_last: bool = False,
    padding: int = -1,
) -> tuple[Value, None, None, None]:
    """Sum, mean or maximum of each bag's rows; bag b has the indices from offset b on.

    The other results are for gradients.
    """
    bags = c.shape[0]
    bag = _bag_of_each(c, indices, slice_dim(c, offsets, 0, 0, bags) if include_last else offsets)
    rows = c.take(weight, indices, axis=0)
    if sample_weights is not None:
        rows = c.mul(rows, c.reshape(sample_weights, shape=(*sample_weights.type.shape, 1)))
    counted = c.ne(indices, padding)
    neutral = -math.inf if mode == _MAX else 0.0
    if padding >= 0:
        kept = c.reshape(counted, shape=(*counted.type.shape, 1))
        rows = c.where(kept, rows, c.operand(neutral, c.dtype))
    start = c.full(shape=c.shape, value=neutral, dtype=c.dtype)
    total = c.scatter_slices(start, bag, rows, axis=0, reduction="amax" if mode == _MAX else "add")
    if mode not in (_MEAN, _MAX):
        return total, None, None, None
    none = c.full(shape=(bags,), value=0.0, dtype=c.dtype)
    count = c.scatter_slices(none, bag, c.cast(counted, c.dtype), axis=0, reduction="add")
    count = c.reshape(count, shape=(bags, 1))
    if mode == _MEAN:
        return c.div(total, c.maximum(count, c.operand(1, c.dtype))), None, None, None
    return c.where(c.eq(count, 0), c.operand(0, c.dtype), total), None, None, None


def _bag_of_each(c: Context, indices: Value, offsets: Value) -> Value:
    """The number of offsets up to each place, less one."""
    place = aligned(c, iota(c, indices.type.shape[0], offsets.type.dtype), 0, 2)
    begun = c.cast(c.le(aligned(c, offsets, 1, 2), place), DType.I64)
    result: Value = c.sub(c.sum(begun, dims=(1,), keepdims=False), 1)
    return result


def _one_hot(c: Context, x: Value, classes: int = -1) -> Value:
    index = c.reshape(x, shape=(*x.type.shape, 1))
    wanted = aligned(c, iota(c, c.shape[-1]), x.type.rank, x.type.rank + 1)
    return c.cast(c.eq(index, wanted), c.dtype)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.embedding.default: _embedding,
    aten._embedding_bag.default: _embedding_bag,
    aten._embedding_bag_forward_only.default: _embedding_bag,
    aten.one_hot.default: _one_hot,
}
