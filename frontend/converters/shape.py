"""Operators that move elements: views, slices, concatenation, padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.frontend.context import Context
from whet.ir.dimensions import Dim
from whet.ir.graph import Value

aten = torch.ops.aten


def _reshape(c: Context, x: Value, *_: Any) -> Value:
    """Every view that keeps the order of elements: the result's shape says all."""
    return c.reshape_to(x, c.shape)


def _identity(c: Context, x: Value, *_: Any) -> Value:
    return x


def _permute(c: Context, x: Value, dims: Sequence[int]) -> Value:
    result: Value = c.transpose(x, permutation=c.dims(dims, x.type.rank))
    return result


def _swap(c: Context, x: Value, first: int, second: int) -> Value:
    order = list(range(x.type.rank))
    if not order:
        return x
    first, second = c.dim(first, x.type.rank), c.dim(second, x.type.rank)
    order[first], order[second] = order[second], order[first]
    return _permute(c, x, order)


def _t(c: Context, x: Value) -> Value:
    return _swap(c, x, 0, 1) if x.type.rank == 2 else x


def _expand(c: Context, x: Value, *_: Any) -> Value:
    result: Value = x if x.type.shape == c.shape else c.broadcast_to(x, shape=c.shape)
    return result


def _slice(c: Context, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    dim = c.dim(dim, x.type.rank)
    size = x.type.shape[dim]
    first = _bound(start, size, 0)
    length = c.shape[dim]
    last = (
        first + (length - 1) * step + 1 if isinstance(length, int) and length == 0 else _stop(first, length, step, size)
    )
    return slice_dim(c, x, dim, first, last, step)


def _bound(index: Any, size: Dim, default: Dim) -> Dim:
    if index is None:
        return default
    if isinstance(index, int) and index < 0:
        moved = size + index
        return max(moved, 0) if isinstance(moved, int) else moved
    return min(index, size) if isinstance(index, int) and isinstance(size, int) else index


def _stop(first: Dim, length: Dim, step: int, size: Dim) -> Dim:
    """The end that gives `length` elements, never beyond the dimension."""
    end = first + length * step
    return min(end, size) if isinstance(end, int) and isinstance(size, int) else (end if step == 1 else end - step + 1)


def slice_dim(c: Context, x: Value, dim: int, start: Dim, stop: Dim, step: int = 1) -> Value:
    """x[start:stop:step] along one dimension, x itself where that is everything."""
    shape = x.type.shape
    if start == 0 and stop == shape[dim] and step == 1:
        return x
    starts, stops, steps = [0] * len(shape), list(shape), [1] * len(shape)
    starts[dim], stops[dim], steps[dim] = start, stop, step
    result: Value = c.slice(x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))
    return result


def _select(c: Context, x: Value, dim: int, index: Any) -> Value:
    dim = c.dim(dim, x.type.rank)
    first = _bound(index, x.type.shape[dim], 0)
    return c.reshape_to(slice_dim(c, x, dim, first, first + 1), c.shape)


def _concat(c: Context, xs: Sequence[Value], dim: int = 0) -> Value:
    # torch lets empty vectors take part in any concatenation
    full = [c.cast(x, c.dtype) for x in xs if x.type.shape != (0,)] or [c.cast(xs[0], c.dtype)]
    axis = c.dim(dim, full[0].type.rank)
    result: Value = full[0] if len(full) == 1 else c.concat(*full, axis=axis)
    return result


def _stack(c: Context, xs: Sequence[Value], dim: int = 0) -> Value:
    rank = xs[0].type.rank + 1
    axis = dim % rank
    shape = xs[0].type.shape
    grown = [c.reshape(c.cast(x, c.dtype), shape=(*shape[:axis], 1, *shape[axis:])) for x in xs]
    result: Value = grown[0] if len(grown) == 1 else c.concat(*grown, axis=axis)
    return result


def _split(c: Context, x: Value, _sizes: Any, dim: int = 0) -> tuple[Value, ...]:
    """Pieces as long as the results' types say."""
    dim = c.dim(dim, x.type.rank)
    pieces, first = [], 0
    for piece in c.result_types:
        assert piece is not None
        length: Any = piece.shape[dim]
        pieces.append(slice_dim(c, x, dim, first, first + length))
        first = first + length
    return tuple(pieces)


def _unbind(c: Context, x: Value, dim: int = 0) -> tuple[Value, ...]:
    dim = c.dim(dim, x.type.rank)
    shape = (*x.type.shape[:dim], *x.type.shape[dim + 1 :])
    return tuple(c.reshape(slice_dim(c, x, dim, index, index + 1), shape=shape) for index in range(len(c.result_types)))


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.flatten.using_ints: _reshape,
    aten.unflatten.int: _reshape,
    aten.squeeze.default: _reshape,
    aten.squeeze.dim: _reshape,
    aten.squeeze.dims: _reshape,
    aten.unsqueeze.default: _reshape,
    aten.contiguous.default: _identity,
    aten.clone.default: _identity,
    aten.alias.default: _identity,
    aten.detach.default: _identity,
    aten.lift_fresh_copy.default: _identity,
    aten.dropout.default: _identity,
    aten.feature_dropout.default: _identity,
    aten.alpha_dropout.default: _identity,
    aten.feature_alpha_dropout.default: _identity,
    aten.permute.default: _permute,
    aten.transpose.int: _swap,
    aten.t.default: _t,
    aten.expand.default: _expand,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.cat.default: _concat,
    aten.stack.default: _stack,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
    aten.unbind.int: _unbind,
}
