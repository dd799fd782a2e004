"""Convolutions of 1, 2 and 3 dimensions over channels-last activations, dense and grouped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tvm import te, tirx

from whet.backends.tvm.kernels.contraction import accumulate
from whet.backends.tvm.kernels.cpu import CpuTarget, lanes
from whet.backends.tvm.kernels.expressions import Dimension, Expression, extent
from whet.backends.tvm.kernels.linear import linear, linear_tile
from whet.backends.tvm.kernels.tiles import Tile, contraction_tile
from whet.backends.tvm.kernels.windows import Window, ceil_to, window_index, windowed


@dataclass(frozen=True)
class ConvPlan:
    """What a convolution's weight packing and its expression must agree on.

    `groups` may be fewer than the operation's: narrow groups are merged into block-diagonal wider ones,
    because a group narrower than a vector wastes as many lanes as the zeros of the merged one.
    """

    tile: Tile
    groups: int

    @property
    def block(self) -> int:
        """Output channels in one packed block of the weight."""
        return self.tile.block


def plan_conv(
    target: CpuTarget,
    input_shape: Sequence[Dimension],
    out_channels: int,
    geometry: Window,
    groups: int = 1,
    dtype: str = "float32",
) -> ConvPlan:
    """Choose register tile, block and merged groups for an input `[N, *spatial, C]`."""
    merged = merged_groups(groups, out_channels, lanes(target, dtype))
    if geometry.pointwise and merged == 1:
        return ConvPlan(linear_tile(target, input_shape, out_channels, dtype), 1)
    channels = extent(input_shape[-1]) or 1
    outputs = geometry.output_extents(input_shape[1:-1])
    steps = math.prod(geometry.kernel) * channels // merged
    tile = contraction_tile(
        target,
        outputs,
        out_channels // merged,
        steps,
        batch=(extent(input_shape[0]) or 1) * merged,
        dtype=dtype,
        exact_block=merged > 1,
        row_bytes=4 * channels * geometry.stride[-1],
    )
    return ConvPlan(tile, merged)


def merged_groups(groups: int, out_channels: int, width: int) -> int:
    """The largest divisor of `groups` that leaves groups of at least `width` outputs; 1 if none does."""
    for count in range(groups, 0, -1):
        if groups % count == 0 and out_channels // count >= width:
            return count
    return 1


def pack_conv_weight(
    weight: torch.Tensor, block: int, groups: int = 1, packed_groups: int | None = None
) -> torch.Tensor:
    """`weight[O, I / groups, *kernel]` as `[ceil(O / block), *kernel, I / packed_groups, block]`.

    The last block is filled with zero channels; groups that `ConvPlan` merges become block-diagonal.
    """
    merged = groups if packed_groups is None else packed_groups
    if merged != groups:
        weight = _block_diagonal(weight, groups, merged)
    channels = weight.shape[0]
    blocks = -(-channels // block)
    padded = weight.new_zeros((blocks * block, *weight.shape[1:]))
    padded[:channels] = weight
    split = padded.reshape(blocks, block, *weight.shape[1:])
    kernel_axes = range(3, split.ndim)
    return split.permute(0, *kernel_axes, 2, 1).contiguous()


def _block_diagonal(weight: torch.Tensor, groups: int, merged: int) -> torch.Tensor:
    """Weights of `merged` groups that do what `groups` narrower ones did, zeros in between."""
    channels, inner = weight.shape[:2]
    per_group = channels // groups
    members = groups // merged
    wide = weight.new_zeros((channels, inner * members, *weight.shape[2:]))
    for group in range(groups):
        place = group % members
        rows = slice(group * per_group, (group + 1) * per_group)
        wide[rows, place * inner : (place + 1) * inner] = weight[rows]
    return wide


def conv(
    x: te.Tensor,
    weight: te.Tensor,
    *,
    geometry: Window,
    out_channels: int,
    plan: ConvPlan,
    pad_value: Expression | None = None,
    accumulator: str | None = None,
    name: str = "conv",
) -> te.Tensor:
    """`out[N, *spatial, O]` of `x[N, *spatial, C]` and a weight that `pack_conv_weight` packed for `plan`.

    `pad_value` (default zero) fills the border; `accumulator` is the dtype of the sum and of the result
    (default x's).
    """
    if geometry.pointwise and plan.groups == 1:
        return linear(x, weight, out_features=out_channels, tile=plan.tile, accumulator=accumulator, name=name)
    dtype = accumulator or x.dtype
    outputs = geometry.output_extents(x.shape[1:-1])
    reach = [ceil_to(count, step) for count, step in zip(outputs, plan.tile.rows, strict=True)]
    read, limits = windowed(x, geometry, reach, pad_value, name)
    taps = [te.reduce_axis((0, size), f"k{axis}") for axis, size in enumerate(geometry.kernel)]
    per_group = out_channels // plan.groups
    inner = te.reduce_axis((0, weight.shape[-2]), "ic")
    block = plan.block

    def product(batch: Sequence[Expression], rows: Sequence[Expression], column: Expression) -> Expression:
        offsets = [tap.var for tap in taps]
        position = window_index(geometry, reach, limits, rows, offsets)
        channel = inner.var
        if plan.groups > 1:
            channel = tirx.floordiv(column, per_group) * weight.shape[-2] + channel
        factor = weight[(tirx.floordiv(column, block), *offsets, inner.var, tirx.floormod(column, block))]
        return read((*batch, *position, channel)).astype(dtype) * factor.astype(dtype)

    acc = accumulate([x.shape[0]], outputs, out_channels, [*taps, inner], product, plan.tile, name=name)
    return te.compute((x.shape[0], *outputs, out_channels), lambda *index: acc[index], name=name)
