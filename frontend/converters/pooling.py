"""Pooling, windowed and adaptive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.frontend.context import Context
from whet.frontend.converters.contraction import spread
from whet.ir.graph import Value

aten = torch.ops.aten


def _batched(c: Context, x: Value, spatial: int, compute: Callable[[Value], Value]) -> Value:
    """Run on a batch of one where the call had no batch dimension."""
    if x.type.rank == spatial + 2:
        return compute(x)
    return c.reshape_to(compute(c.reshape(x, shape=(1, *x.type.shape))), c.shape)


def _max_pool(spatial: int) -> Callable[..., Value]:
    def convert(
        c: Context, x: Value, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
    ) -> Value:
        window = spread(kernel, spatial)
        attributes = {
            "kernel": window,
            "stride": spread(stride, spatial) if stride else window,
            "padding": tuple((p, p) for p in spread(padding, spatial)),
            "dilation": spread(dilation, spatial),
            "ceil": ceil,
        }
        return _batched(c, x, spatial, lambda batch: c.max_pool(batch, **attributes))

    return convert


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
            "padding": tuple((p, p) for p in spread(padding, spatial)),
            "ceil": ceil,
            "count_padding": count_padding,
            "divisor": divisor,
        }
        return _batched(c, x, spatial, lambda batch: c.avg_pool(batch, **attributes))

    return convert


def _adaptive(name: str, spatial: int) -> Callable[..., Value]:
    def convert(c: Context, x: Value, size: Sequence[int]) -> Value:
        target = spread(size, spatial)
        if target == (1,) * spatial:
            reduction = "mean" if "avg" in name else "amax"
            dims = tuple(range(x.type.rank - spatial, x.type.rank))
            result: Value = getattr(c, reduction)(x, dims=dims, keepdims=True)
            return result
        return _batched(c, x, spatial, lambda batch: getattr(c, name)(batch, size=target))

    return convert


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.max_pool1d.default: _max_pool(1),
    aten.max_pool2d.default: _max_pool(2),
    aten.max_pool3d.default: _max_pool(3),
    aten.avg_pool1d.default: _avg_pool(1),
    aten.avg_pool2d.default: _avg_pool(2),
    aten.avg_pool3d.default: _avg_pool(3),
    aten.adaptive_avg_pool1d.default: _adaptive("adaptive_avg_pool", 1),
    aten.adaptive_avg_pool2d.default: _adaptive("adaptive_avg_pool", 2),
    aten.adaptive_avg_pool3d.default: _adaptive("adaptive_avg_pool", 3),
    aten._adaptive_avg_pool2d.default: _adaptive("adaptive_avg_pool", 2),
    aten._adaptive_avg_pool3d.default: _adaptive("adaptive_avg_pool", 3),
}
