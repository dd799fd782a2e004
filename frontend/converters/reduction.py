"""Reductions and scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.frontend.context import Context
from whet.ir.graph import Value

aten = torch.ops.aten


def _reduction(name: str) -> Callable[..., Value]:
    """f over dims (none given: all), computed in the result's dtype."""

    def convert(c: Context, x: Value, dims: Any = None, keepdims: bool = False, *_: Any) -> Value:
        if isinstance(dims, Sequence) and not dims:
            dims = None
        x = c.cast(x, c.dtype)
        result: Value = getattr(c, name)(x, dims=c.dims(dims, x.type.rank), keepdims=bool(keepdims))
        return result

    return convert


def _total(name: str) -> Callable[..., Value]:
    """f over all dimensions."""

    def convert(c: Context, x: Value, *_: Any) -> Value:
        return _reduction(name)(c, x)

    return convert


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.sum.dim_IntList: _reduction("sum"),
    aten.sum.default: _total("sum"),
    aten.mean.dim: _reduction("mean"),
    aten.mean.default: _total("mean"),
    aten.amax.default: _reduction("amax"),
    aten.amin.default: _reduction("amin"),
}
