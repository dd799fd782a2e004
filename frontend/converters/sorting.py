"""Sorting and order statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from whet.frontend.context import Context
from whet.frontend.converters.common import static
from whet.frontend.converters.shape import slice_dim
from whet.ir.dimensions import Dim, simplify_dim
from whet.ir.graph import Value
from whet.ir.types import DType

aten = torch.ops.aten


def _ordered(c: Context, x: Value) -> Value:
    """Truth values are ordered as 0 and 1, scalars as vectors of one element."""
    x = c.cast(x, DType.U8) if x.type.dtype is DType.BOOL else x
    return c.reshape_to(x, (1,)) if x.type.rank == 0 else x


def _sorted(c: Context, x: Value, dim: int, descending: bool) -> tuple[Value, Value]:
    ordered = _ordered(c, x)
    values, indices = c.sort(ordered, axis=c.dim(dim, x.type.rank), descending=bool(descending))
    return c.reshape_to(c.cast(values, x.type.dtype), x.type.shape), c.reshape_to(indices, x.type.shape)


def _sort(c: Context, x: Value, dim: int = -1, descending: bool = False) -> tuple[Value, Value]:
    return _sorted(c, x, dim, descending)


def _sort_stable(
    c: Context, x: Value, stable: bool | None, dim: int = -1, descending: bool = False
) -> tuple[Value, Value]:
    return _sorted(c, x, dim, descending)


def _argsort(c: Context, x: Value, dim: int = -1, descending: bool = False) -> Value:
    return _sorted(c, x, dim, descending)[1]


def _argsort_stable(c: Context, x: Value, stable: bool, dim: int = -1, descending: bool = False) -> Value:
    return _sorted(c, x, dim, descending)[1]


def _topk(
    c: Context, x: Value, k: Dim, dim: int = -1, largest: bool = True, _sorted: bool = True
) -> tuple[Value, Value]:
    axis = c.dim(dim, x.type.rank)
    values, indices = c.topk(_ordered(c, x), k=k, axis=axis, largest=bool(largest))
    return c.reshape_to(values, c.shape), c.reshape_to(indices, c.shape)


def _kthvalue(c: Context, x: Value, k: Any, dim: int = -1, keepdims: bool = False) -> tuple[Value, Value]:
    """The k-th least element, counted from one."""
    axis = c.dim(dim, x.type.rank)
    values, indices = c.sort(_ordered(c, x), axis=axis, descending=False)
    first = simplify_dim(k - 1)
    picked, index = (slice_dim(c, item, axis, first, k) for item in (values, indices))
    return c.reshape_to(picked, c.shape), c.reshape_to(index, c.shape)


def _median(ignore_nan: bool) -> Callable[..., Any]:
    """The lower of the two middle elements; a NaN is the median unless NaNs are ignored."""

    def along(c: Context, x: Value, dim: int, keepdims: bool = False) -> tuple[Value, Value]:
        axis = c.dim(dim, x.type.rank)
        values, indices = c.sort(_ordered(c, x), axis=axis, descending=False)
        size = static(c, values.type.shape[axis], "the dimension of a median")
        place = _middle(c, values, axis, size, ignore_nan)
        picked, index = (c.gather(item, place, axis=axis) for item in (values, indices))
        return c.reshape_to(picked, c.shape), c.reshape_to(index, c.shape)

    def convert(c: Context, x: Value, dim: int | None = None, keepdims: bool = False) -> Any:
        if dim is None:
            return along(c, c.reshape_to(x, (x.type.numel,)), 0)[0]
        return along(c, x, dim, keepdims)

    return convert


def _middle(c: Context, values: Value, axis: int, size: int, ignore_nan: bool) -> Value:
    """Where the median is among sorted values; NaNs stand at their end."""
    shape = tuple(1 if dim == axis else length for dim, length in enumerate(values.type.shape))
    middle: Value = c.broadcast_to(c.operand((size - 1) // 2, DType.I64), shape=shape)
    if not values.type.dtype.is_float:
        return middle
    numbers = c.sum(c.cast(c.logical_not(c.isnan(values)), DType.I64), dims=(axis,), keepdims=True)
    if ignore_nan:
        last: Value = c.clamp(c.floor_div(c.sub(numbers, 1), 2), minimum=0)
        return last
    has_nan = c.lt(numbers, size)
    result: Value = c.where(has_nan, numbers, middle)
    return result


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.sort.default: _sort,
    aten.sort.stable: _sort_stable,
    aten.argsort.default: _argsort,
    aten.argsort.stable: _argsort_stable,
    aten.topk.default: _topk,
    aten.kthvalue.default: _kthvalue,
    aten.median.default: _median(ignore_nan=False),
    aten.median.dim: _median(ignore_nan=False),
    aten.nanmedian.default: _median(ignore_nan=True),
    aten.nanmedian.dim: _median(ignore_nan=True),
}
