"""Interpolation to another size, and sampling at a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from whet.frontend.context import Context
from whet.ir.dimensions import Dim, same_dim
from whet.ir.graph import Value

aten = torch.ops.aten

_MODES = ("linear", "nearest", "cubic")
_BORDERS = ("zeros", "border", "reflection")


def _resize(c: Context, x: Value, mode: str, coordinates: str, scales: Sequence[float | None]) -> Value:
    """The result's shape says the size, whether the call gave it or a factor."""
    size = c.shape[2:]
    factors = None if coordinates == "align_corners" else _factors(x.type.shape[2:], size, scales)
    result: Value = c.resize(x, size=size, mode=mode, coordinates=coordinates, scales=factors)
    return result


def _factors(old: Sequence[Dim], new: Sequence[Dim], scales: Sequence[float | None]) -> tuple[float, ...] | None:
    """The factors of the call, where they differ from the ratios of the sizes (the result's size is rounded
    down)."""
    given = [scale for scale in scales if scale is not None and scale > 0]
    if len(given) < len(new) or all(map(_is_ratio, old, new, given)):
        return None
    return tuple(map(float, given))


def _is_ratio(old: Dim, new: Dim, scale: float) -> bool:
    if isinstance(old, int) and isinstance(new, int):
        return bool(np.float32(1 / scale) == np.float32(old / new))
    return float(scale).is_integer() and same_dim(new, old * int(scale))


def _nearest(coordinates: str) -> Callable[..., Value]:
    def convert(c: Context, x: Value, size: Any, *scales: Any) -> Value:
        return _resize(c, x, "nearest", coordinates, _flat(scales))

    return convert


def _interpolated(mode: str) -> Callable[..., Value]:
    def convert(c: Context, x: Value, size: Any, align_corners: bool, *scales: Any) -> Value:
        return _resize(c, x, mode, "align_corners" if align_corners else "half_pixel", _flat(scales))

    return convert


def _flat(scales: tuple[Any, ...]) -> list[float | None]:
    """Factors come as one list (or None), or one argument a dimension."""
    if len(scales) == 1 and isinstance(scales[0], (list, tuple)):
        return list(scales[0])
    return list(scales)


def _grid_sample(c: Context, x: Value, grid: Value, mode: int, border: int, align_corners: bool) -> Value:
    result: Value = c.grid_sample(
        x, grid, mode=_MODES[mode], border=_BORDERS[border], align_corners=bool(align_corners)
    )
    return result


def _overloads(name: str, converter: Callable[..., Value]) -> dict[Any, Callable[..., Value]]:
    operator = getattr(aten, name)
    return {operator.default: converter, operator.vec: converter}


CONVERTERS: dict[Any, Callable[..., Any]] = {
    **_overloads("upsample_nearest1d", _nearest("asymmetric")),
    **_overloads("upsample_nearest2d", _nearest("asymmetric")),
    **_overloads("upsample_nearest3d", _nearest("asymmetric")),
    **_overloads("_upsample_nearest_exact1d", _nearest("half_pixel")),
    **_overloads("_upsample_nearest_exact2d", _nearest("half_pixel")),
    **_overloads("_upsample_nearest_exact3d", _nearest("half_pixel")),
    **_overloads("upsample_linear1d", _interpolated("linear")),
    **_overloads("upsample_bilinear2d", _interpolated("linear")),
    **_overloads("upsample_trilinear3d", _interpolated("linear")),
    **_overloads("upsample_bicubic2d", _interpolated("cubic")),
    aten.grid_sampler.default: _grid_sample,
    aten.grid_sampler_2d.default: _grid_sample,
    aten.grid_sampler_3d.default: _grid_sample,
}
