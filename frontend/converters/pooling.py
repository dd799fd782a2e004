"""Pooling, windowed and adaptive, with and without the places of the maxima."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from whet.frontend.context import Context
from whet.frontend.converters.convolution import batched, spread
from whet.ir.dimensions import same_dim
from whet.ir.graph import Value
from whet.ir.types import DType

aten = torch.ops.aten


def _reduce_spatial(c: Context, name: str, x: Value, spatial: int) -> Value:
    dims = tuple(range(x.type.rank - spatial, x.type.rank))
    result: Value = getattr(c, name)(x, dims=dims, keepdims=True)
    return result


def _max_attributes(spatial: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> dict[str, Any]:
    window = spread(kernel, spatial)
    return {
        "kernel": window,
        "stride": spread(stride, spatial) if stride else window,
        "padding": tuple((amount, amount) for amount in spread(padding, spatial)),
        "dilation": spread(dilation, spatial),
        "ceil": ceil,
    }


def _max_pool(spatial: int) -> Callable[..., Value]:
    def convert(
        c: Context,
        x: Value,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil: bool = False,
    ) -> Value:
        attributes = _max_attributes(spatial, kernel, stride, padding, dilation, ceil)
        return batched(c, x, spatial + 2, lambda batch: c.max_pool(batch, **attributes))

    return convert


def _max_pool_with_indices(spatial: int) -> Callable[..., tuple[Value, Value | None]]:
    """A plain max pool where nobody asks for the indices."""

    def convert(
        c: Context,
        x: Value,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil: bool = False,
    ) -> tuple[Value, Value | None]:
        if not c.used[1]:
            return _max_pool(spatial)(c, x, kernel, stride, padding, dilation, ceil), None
        attributes = _max_attributes(spatial, kernel, stride, padding, dilation, ceil)
        return _two_results(c, x, spatial, lambda batch: c.max_pool_with_indices(batch, **attributes))

    return convert


def _two_results(
    c: Context, x: Value, spatial: int, compute: Callable[[Value], tuple[Value, Value]]
) -> tuple[Value, Value]:
    if x.type.rank == spatial + 2:
        return compute(x)
    values, indices = compute(c.reshape(x, shape=(1, *x.type.shape)))
    return c.reshape_to(values, c.shape), c.reshape_to(indices, c.shape)


def _avg_pool(spatial: int) -> Callable[..., Value]:
    def convert(
        c: Context,
        x: Value,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil: bool = False,
        count_padding: bool = True,
        divisor: int | None = None,
    ) -> Value:
        window = spread(kernel, spatial)
        attributes = {
            "kernel": window,
            "stride": spread(stride, spatial) if stride else window,
            "padding": tuple((amount, amount) for amount in spread(padding, spatial)),
            "ceil": ceil,
            "count_padding": count_padding,
            "divisor": divisor,
        }
        if x.type.dtype.is_float:
            return batched(c, x, spatial + 2, lambda batch: c.avg_pool(batch, **attributes))
        # integers are divided toward zero, which float64 does exactly
        wide = c.cast(x, DType.F64)
        return c.cast(batched(c, wide, spatial + 2, lambda batch: c.avg_pool(batch, **attributes)), c.dtype)

    return convert


def _adaptive_avg_pool(spatial: int) -> Callable[..., Value]:
    def convert(c: Context, x: Value, *_: Any) -> Value:
        """The result's shape says the size, also where the call gave None for a dimension."""
        target = c.shape[x.type.rank - spatial :]
        if target == (1,) * spatial:
            return _reduce_spatial(c, "mean", x, spatial)
        if all(map(same_dim, target, x.type.shape[x.type.rank - spatial :])):
            return x
        return batched(c, x, spatial + 2, lambda batch: c.adaptive_avg_pool(batch, size=target))

    return convert


def _adaptive_max_pool(spatial: int) -> Callable[..., tuple[Value, Value | None]]:
    def convert(c: Context, x: Value, *_: Any) -> tuple[Value, Value | None]:
        target = c.shape[x.type.rank - spatial :]
        if c.used[1]:
            return _two_results(c, x, spatial, lambda batch: c.adaptive_max_pool_with_indices(batch, size=target))
        if target == (1,) * spatial:
            return _reduce_spatial(c, "amax", x, spatial), None
        return batched(c, x, spatial + 2, lambda batch: c.adaptive_max_pool(batch, size=target)), None

    return convert


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.max_pool1d.default: _max_pool(1),
    aten.max_pool2d.default: _max_pool(2),
    aten.max_pool3d.default: _max_pool(3),
    aten.max_pool1d_with_indices.default: _max_pool_with_indices(1),
    aten.max_pool2d_with_indices.default: _max_pool_with_indices(2),
    aten.max_pool3d_with_indices.default: _max_pool_with_indices(3),
    aten.avg_pool1d.default: _avg_pool(1),
    aten.avg_pool2d.default: _avg_pool(2),
    aten.avg_pool3d.default: _avg_pool(3),
    aten.adaptive_avg_pool1d.default: _adaptive_avg_pool(1),
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool(2),
    aten.adaptive_avg_pool3d.default: _adaptive_avg_pool(3),
    aten._adaptive_avg_pool2d.default: _adaptive_avg_pool(2),
    aten._adaptive_avg_pool3d.default: _adaptive_avg_pool(3),
    aten.adaptive_max_pool1d.default: _adaptive_max_pool(1),
    aten.adaptive_max_pool2d.default: _adaptive_max_pool(2),
    aten.adaptive_max_pool3d.default: _adaptive_max_pool(3),
}
