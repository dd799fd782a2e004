"""Reductions and scans."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.frontend.context import Context
from whet.frontend.converters.common import aligned, index_constant, iota, static
from whet.ir.graph import Value
from whet.ir.types import DType

aten = torch.ops.aten

# On truth values a reduction is a logical one.
_OF_BOOLS = {"amax": "any", "amin": "all", "prod": "all", "sum": "any"}


def reduce(c: Context, name: str, x: Value, dims: Any = None, keepdims: bool = False) -> Value:
    """f over dims (none given: all), in x's dtype."""
    if isinstance(dims, Sequence) and not dims:
        dims = None
    if x.type.dtype is DType.BOOL:
        name = _OF_BOOLS.get(name, name)
    axes = c.dims(dims, x.type.rank)
    if not axes:
        return x
    result: Value = getattr(c, name)(x, dims=axes, keepdims=bool(keepdims))
    return result


def _reduction(name: str) -> Callable[..., Value]:
    """f over dims, computed in the result's dtype."""

    def convert(c: Context, x: Value, dims: Any = None, keepdims: bool = False, *_: Any) -> Value:
        return reduce(c, name, c.cast(x, c.dtype), dims, keepdims)

    return convert


def _total(name: str) -> Callable[..., Value]:
    """f over all dimensions."""

    def convert(c: Context, x: Value, *_: Any) -> Value:
        return _reduction(name)(c, x)

    return convert


def _logical(name: str) -> Callable[..., Value]:
    """any and all: on truth values, the result in torch's dtype (uint8 stays uint8)."""

    def convert(c: Context, x: Value, dims: Any = None, keepdims: bool = False) -> Value:
        return c.cast(reduce(c, name, c.cast(x, DType.BOOL), dims, keepdims), c.dtype)

    return convert


def _arg(name: str) -> Callable[..., Value]:
    """Position of the extreme element; without a dimension, in the flattened tensor."""

    def convert(c: Context, x: Value, dim: int | None = None, keepdims: bool = False) -> Value:
        if dim is None or x.type.rank == 0:
            position = getattr(c, name)(c.reshape_to(x, (x.type.numel,)), dim=0, keepdims=False)
            return c.reshape_to(position, c.shape)
        result: Value = getattr(c, name)(x, dim=c.dim(dim, x.type.rank), keepdims=keepdims)
        return result

    return convert


def _extreme_with_index(name: str) -> Callable[..., tuple[Value, Value]]:
    """max and min along a dimension: values and where they are."""

    def convert(c: Context, x: Value, dim: int, keepdims: bool = False) -> tuple[Value, Value]:
        # an order of truth values is that of 0 and 1
        ordered = c.cast(x, DType.U8) if x.type.dtype is DType.BOOL else x
        index = _arg(f"arg{name}")(c, ordered, dim, keepdims)
        return reduce(c, f"a{name}", x, dim, keepdims), c.reshape_to(index, c.shape)

    return convert


def _aminmax(c: Context, x: Value, dim: int | None = None, keepdims: bool = False) -> tuple[Value, Value]:
    least, greatest = (c.reshape_to(reduce(c, name, x, dim, keepdims), c.shape) for name in ("amin", "amax"))
    return least, greatest


def _var(c: Context, x: Value, dims: Any = None, correction: Any = None, keepdims: bool = False) -> Value:
    correction = 1.0 if correction is None else float(correction)
    if isinstance(dims, Sequence) and not dims:
        dims = None
    shape = x.type.shape
    if not shape:
        x, dims = c.reshape(x, shape=(1,)), (0,)
    result: Value = c.var(x, dims=c.dims(dims, x.type.rank), keepdims=bool(keepdims and shape), correction=correction)
    return result


def _std(c: Context, *arguments: Any) -> Value:
    result: Value = c.sqrt(_var(c, *arguments))
    return result


def _mean_of(c: Context, x: Value, dims: Any = None, _correction: Any = None, keepdims: bool = False) -> Value:
    return reduce(c, "mean", x, dims, keepdims)


def _var_mean(c: Context, *arguments: Any) -> tuple[Value, Value]:
    return _var(c, *arguments), _mean_of(c, *arguments)


def _std_mean(c: Context, *arguments: Any) -> tuple[Value, Value]:
    return _std(c, *arguments), _mean_of(c, *arguments)


def _vector_norm(c: Context, x: Value, order: float = 2, dims: Any = None, keepdims: bool = False, *_: Any) -> Value:
    """(Σ |x|^p)^(1/p), with the limits p = inf (greatest), -inf (least) and 0 (number of non-zeros)."""
    x = c.cast(x, c.dtype)
    order = float(order)
    if order == 0:
        zero = c.operand(0, c.dtype)
        return reduce(c, "sum", c.cast(c.ne(x, zero), c.dtype), dims, keepdims)
    if order == 2 and x.type.rank:
        length: Value = c.sqrt(reduce(c, "sum", c.mul(x, x), dims, keepdims))
        return length
    size = c.abs(x)
    if math.isinf(order):
        return reduce(c, "amax" if order > 0 else "amin", size, dims, keepdims)
    if order == 1 or x.type.rank == 0:
        return reduce(c, "sum", size, dims, keepdims)
    total = reduce(c, "sum", c.pow(size, c.operand(order, c.dtype)), dims, keepdims)
    result: Value = c.pow(total, c.operand(1 / order, c.dtype))
    return result


def _norm(c: Context, x: Value, order: float | None = 2, dims: Any = None, keepdims: bool = False, *_: Any) -> Value:
    return _vector_norm(c, x, 2 if order is None else order, dims, keepdims)


def _logsumexp(c: Context, x: Value, dims: Any, keepdims: bool = False) -> Value:
    """log Σ exp(x - max) + max; a maximum that is infinite is not subtracted."""
    x = c.cast(x, c.dtype)
    if x.type.numel == 0:
        total = reduce(c, "sum", c.exp(x), dims, keepdims)
        empty: Value = c.log(total)
        return empty
    greatest = reduce(c, "amax", x, dims, True)
    zero = c.operand(0, c.dtype)
    shift = c.where(c.isfinite(greatest), greatest, zero)
    total = c.log(reduce(c, "sum", c.exp(c.sub(x, shift)), dims, True))
    return c.reshape_to(c.add(total, shift), c.shape)


def _count_nonzero(c: Context, x: Value, dims: Any = None) -> Value:
    return reduce(c, "sum", c.cast(c.cast(x, DType.BOOL), c.dtype), dims)


def _nansum(c: Context, x: Value, dims: Any = None, keepdims: bool = False, *_: Any) -> Value:
    if x.type.dtype.is_float:
        x = c.where(c.isnan(x), c.operand(0, x.type.dtype), x)
    return reduce(c, "sum", c.cast(x, c.dtype), dims, keepdims)


def _cdist(c: Context, x: Value, y: Value, order: float, _mode: Any = None) -> Value:
    """Norms of all differences of rows: [..., m, k] and [..., n, k] give [..., m, n]."""
    left = c.reshape(x, shape=(*x.type.shape[:-1], 1, x.type.shape[-1]))
    right = c.reshape(y, shape=(*y.type.shape[:-2], 1, *y.type.shape[-2:]))
    return _vector_norm(c, c.sub(left, right), order, [-1])


def _pdist(c: Context, x: Value, order: float) -> Value:
    """Norms of the differences of each pair of rows."""
    count = static(c, x.type.shape[0], "the number of rows")
    first, second = (index_constant(c, index) for index in torch.triu_indices(count, count, 1))
    difference = c.sub(c.take(x, first, axis=0), c.take(x, second, axis=0))
    return _vector_norm(c, difference, order, [-1])


def _histogram(c: Context, x: Value, bins: int = 100, low: float = 0, high: float = 0) -> Value:
    """Elements in each of `bins` equal parts of low..high, or of their own range if both are equal."""
    flat = c.reshape_to(x, (x.type.numel,))
    first, last = _histogram_range(c, flat, float(low), float(high))
    place = c.floor(c.div(c.mul(c.sub(flat, first), float(bins)), c.sub(last, first)))
    place = c.clamp(c.cast(place, DType.I64), maximum=bins - 1)
    inside = c.logical_and(c.ge(flat, first), c.le(flat, last))
    hits = c.logical_and(c.eq(place, aligned(c, iota(c, bins), 0, 2)), inside)
    result: Value = c.sum(c.cast(hits, c.dtype), dims=(1,), keepdims=False)
    return result


def _histogram_range(c: Context, x: Value, low: float, high: float) -> tuple[Value, Value]:
    if low != high:
        return c.operand(low, c.dtype), c.operand(high, c.dtype)
    if x.type.numel == 0:
        return c.operand(low - 1, c.dtype), c.operand(high + 1, c.dtype)
    first, last = reduce(c, "amin", x), reduce(c, "amax", x)
    one = c.cast(c.eq(first, last), c.dtype)
    return c.sub(first, one), c.add(last, one)


def _scan(name: str) -> Callable[..., Value]:
    def convert(c: Context, x: Value, dim: int, *_: Any) -> Value:
        x = c.cast(x, c.dtype)
        if x.type.rank == 0:
            return x
        result: Value = getattr(c, name)(x, dim=c.dim(dim, x.type.rank))
        return result

    return convert


def _extreme_scan(name: str) -> Callable[..., tuple[Value, Value]]:
    """cummax and cummin, with the last position where the running extreme was met."""

    def convert(c: Context, x: Value, dim: int) -> tuple[Value, Value]:
        if x.type.rank == 0:
            return x, c.operand(0, DType.I64)
        dim = c.dim(dim, x.type.rank)
        ordered = c.cast(x, DType.U8) if x.type.dtype is DType.BOOL else x
        running = getattr(c, name)(ordered, dim=dim)
        met = c.eq(ordered, running)
        if x.type.dtype.is_float:
            met = c.logical_or(met, c.isnan(ordered))
        position = aligned(c, iota(c, x.type.shape[dim]), dim, x.type.rank)
        index = c.cummax(c.where(met, position, c.operand(0, DType.I64)), dim=dim)
        return c.cast(running, x.type.dtype), index

    return convert


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.sum.dim_IntList: _reduction("sum"),
    aten.sum.default: _total("sum"),
    aten.mean.dim: _reduction("mean"),
    aten.mean.default: _total("mean"),
    aten.prod.default: _total("prod"),
    aten.prod.dim_int: _reduction("prod"),
    aten.amax.default: _reduction("amax"),
    aten.amin.default: _reduction("amin"),
    aten.max.default: _total("amax"),
    aten.min.default: _total("amin"),
    aten.max.dim: _extreme_with_index("max"),
    aten.min.dim: _extreme_with_index("min"),
    aten.aminmax.default: _aminmax,
    aten.argmax.default: _arg("argmax"),
    aten.argmin.default: _arg("argmin"),
    aten.any.default: _logical("any"),
    aten.any.dim: _logical("any"),
    aten.any.dims: _logical("any"),
    aten.all.default: _logical("all"),
    aten.all.dim: _logical("all"),
    aten.all.dims: _logical("all"),
    aten.var.correction: _var,
    aten.std.correction: _std,
    aten.var_mean.correction: _var_mean,
    aten.std_mean.correction: _std_mean,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.norm.Scalar: _norm,
    aten.norm.ScalarOpt_dim: _norm,
    aten.norm.ScalarOpt_dtype: lambda c, x, order, dtype: _norm(c, x, order),
    aten.norm.ScalarOpt_dim_dtype: _norm,
    aten.logsumexp.default: _logsumexp,
    aten.count_nonzero.default: _count_nonzero,
    aten.count_nonzero.dim_IntList: _count_nonzero,
    aten.nansum.default: _nansum,
    aten._cdist_forward.default: _cdist,
    aten._pdist_forward.default: _pdist,
    aten.histc.default: _histogram,
    aten.cumsum.default: _scan("cumsum"),
    aten.cumprod.default: _scan("cumprod"),
    aten.logcumsumexp.default: _scan("logcumsumexp"),
    aten.cummax.default: _extreme_scan("cummax"),
    aten.cummin.default: _extreme_scan("cummin"),
}
