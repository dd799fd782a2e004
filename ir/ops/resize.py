"""Sampling a feature map at other positions: resizing to a size, and at the positions of a grid."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from whet.ir.definition import Axis, Cost, OpDefinition, Tie, moved_bytes, require, require_same_dtype
from whet.ir.dimensions import Dim, same_dim
from whet.ir.graph import Operation
from whet.ir.ops.contraction import (
    CHANNELS_FIRST,
    channel_dim,
    feature_map,
    from_channels_first,
    require_layout,
    to_channels_first,
)
from whet.ir.types import TensorType

MODES: Final = {
    "nearest": ("asymmetric", "half_pixel"),
    "linear": ("half_pixel", "align_corners"),
    "cubic": ("half_pixel", "align_corners"),
}
"""Interpolation -> the coordinate systems it has."""
_TAPS: Final = {"nearest": 1, "linear": 2, "cubic": 4}
_BORDERS: Final = ("zeros", "border", "reflection")


class Resize(OpDefinition):
    """Every spatial dimension interpolated to `size`, with the coordinate systems of torch and ONNX.

    Output index i lies at input position p (computed in float32 for f32 and narrower types):

        half_pixel     p = (i + 0.5) · step - 0.5     step = 1 / scale where `scales` is given, else size_in /
        size_out asymmetric     p = i · step                   as half_pixel align_corners  p = i · step
        step = (size_in - 1) / (size_out - 1), 0 where size_out is 1

    mode "nearest": x[min(⌊p⌋, size_in - 1)], with half_pixel x[min(⌊(i + 0.5) · step⌋, size_in - 1)].
    "linear": p below 0 becomes 0; (1 - t) · x[⌊p⌋] + t · x[min(⌊p⌋ + 1, size_in - 1)], t = p - ⌊p⌋. "cubic"
    (two spatial dimensions): the four taps ⌊p⌋ - 1 ... ⌊p⌋ + 2, each index clamped into the dimension, by
    cubic convolution with a = -0.75 (Keys 1981). Several dimensions are interpolated one after the other,
    which is the product of their weights.
    """

    name = "resize"

    def infer(
        self,
        x: TensorType,
        *,
        size: tuple[Dim, ...],
        mode: str,
        coordinates: str,
        scales: tuple[float, ...] | None = None,
        layout: str = CHANNELS_FIRST,
    ) -> TensorType:
        require_layout(layout)
        require(mode in MODES, f"mode must be one of {list(MODES)}, got {mode!r}")
        require(coordinates in MODES[mode], f"{mode} has the coordinates {MODES[mode]}, got {coordinates!r}")
        require(
            x.rank == len(size) + 2 and 1 <= len(size) <= 3,
            f"{x} must be [N, C, *spatial] with {len(size)} spatial dimensions",
        )
        require(mode != "cubic" or len(size) == 2, "cubic interpolation has two spatial dimensions")
        require(
            scales is None or (len(scales) == len(size) and min(scales) > 0),
            f"scales {scales} do not fit {size}",
        )
        return TensorType(feature_map(x.shape[0], x.shape[channel_dim(x.rank, layout)], size, layout), x.dtype)

    def evaluate(
        self,
        x: Tensor,
        *,
        size: tuple[int, ...],
        mode: str,
        coordinates: str,
        scales: tuple[float, ...] | None = None,
        layout: str = CHANNELS_FIRST,
    ) -> Tensor:
        x = to_channels_first(x, layout)
        factors = (None,) * len(size) if scales is None else scales
        if mode == "nearest":
            function: Any = _NEAREST[coordinates][len(size) - 1]
            return from_channels_first(function(x, size, *factors), layout)
        function = torch.ops.aten.upsample_bicubic2d if mode == "cubic" else _LINEAR[len(size) - 1]
        return from_channels_first(function(x, size, coordinates == "align_corners", *factors), layout)

    def axes(self, operation: Operation) -> list[Tie]:
        channel = channel_dim(operation.result.type.rank, operation.attributes["layout"])
        return [Tie(Axis(0, 0), Axis(-1, 0)), Tie(Axis(0, channel), Axis(-1, channel))]

    def cost(self, operation: Operation) -> Cost:
        taps = _TAPS[operation.attributes["mode"]] ** len(operation.attributes["size"])
        work = 2 * taps if taps > 1 else 0
        return Cost(work * operation.result.type.numel, moved_bytes(operation))


_LINEAR: Final = (
    torch.ops.aten.upsample_linear1d,
    torch.ops.aten.upsample_bilinear2d,
    torch.ops.aten.upsample_trilinear3d,
)
_NEAREST: Final = {
    "asymmetric": (
        torch.ops.aten.upsample_nearest1d,
        torch.ops.aten.upsample_nearest2d,
        torch.ops.aten.upsample_nearest3d,
    ),
    "half_pixel": (
        torch.ops.aten._upsample_nearest_exact1d,
        torch.ops.aten._upsample_nearest_exact2d,
        torch.ops.aten._upsample_nearest_exact3d,
    ),
}


class GridSample(OpDefinition):
    """x sampled at the positions of `grid` (Jaderberg et al. 2015), two or three spatial dimensions.

    grid [N, *positions, D]: coordinates in [-1, 1], the last spatial dimension of x first. A coordinate g
    becomes the position (g + 1) / 2 · (size - 1) where `align_corners`, ((g + 1) · size - 1) / 2 elsewhere.
    `border` says what lies outside: "zeros", "border" (positions are clamped to 0 ... size - 1), "reflection"
    (mirrored at the first and last element where `align_corners`, else at the edges -0.5 and size - 0.5, then
    clamped). mode: "nearest" (half to even), "linear", or "cubic" (a = -0.75, two dimensions; `border`
    applies to each tap).
    """

    name = "grid_sample"

    def infer(
        self,
        x: TensorType,
        grid: TensorType,
        *,
        mode: str = "linear",
        border: str = "zeros",
        align_corners: bool = False,
    ) -> TensorType:
        require_same_dtype(x=x, grid=grid)
        require(mode in _TAPS, f"mode must be one of {list(_TAPS)}, got {mode!r}")
        require(border in _BORDERS, f"border must be one of {list(_BORDERS)}, got {border!r}")
        require(x.rank in (4, 5) and grid.rank == x.rank, f"x {x} and grid {grid} must both have rank 4 or 5")
        require(same_dim(x.shape[0], grid.shape[0]), f"x {x} and grid {grid} differ in their batch")
        require(grid.shape[-1] == x.rank - 2, f"the last dimension of grid {grid} must be {x.rank - 2}")
        require(mode != "cubic" or x.rank == 4, "cubic interpolation has two spatial dimensions")
        return TensorType((*x.shape[:2], *grid.shape[1:-1]), x.dtype)

    def evaluate(
        self,
        x: Tensor,
        grid: Tensor,
        *,
        mode: str = "linear",
        border: str = "zeros",
        align_corners: bool = False,
    ) -> Tensor:
        torch_mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
        return F.grid_sample(x, grid, mode=torch_mode, padding_mode=border, align_corners=align_corners)

    def axes(self, operation: Operation) -> list[Tie]:
        rank = operation.result.type.rank
        return [
            Tie(Axis(0, 0), Axis(-1, 0)),
            Tie(Axis(0, 1), Axis(-1, 1)),
            *(Tie(Axis(1, dim - 1), Axis(-1, dim)) for dim in range(2, rank)),
            Tie(Axis(1, 0), Axis(-1, 0)),
        ]

    def cost(self, operation: Operation) -> Cost:
        taps = _TAPS[operation.attributes["mode"]] ** (operation.result.type.rank - 2)
        return Cost(2 * taps * operation.result.type.numel, moved_bytes(operation))


DEFINITIONS: tuple[OpDefinition, ...] = (Resize(), GridSample())
