"""Depthwise convolutions: vectors of channels, weights packed `[*kernel, C]`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tvm import te, tirx

from whet.backends.tvm.intrinsics.instructions import DotInstruction, lane_instruction
from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.cpu import CpuTarget, lanes
from whet.backends.tvm.kernels.expressions import Dimension, Expression, extent
from whet.backends.tvm.kernels.tiles import Tile, chosen_tile
from whet.backends.tvm.kernels.windows import Window, ceil_to, window_index, windowed

# Outputs along a row that share the loads of their overlapping windows.
_LONGEST_ROW = 8


def pack_depthwise_weight(weight: torch.Tensor) -> torch.Tensor:
    """`weight[C * multiplier, 1, *kernel]` (torch's layout) as `[*kernel, C * multiplier]`."""
    return weight.squeeze(1).movedim(0, -1).contiguous()


def depthwise_tile(
    target: CpuTarget,
    input_shape: Sequence[Dimension],
    channels: int,
    geometry: Window,
    dtype: str = "float32",
) -> Tile:
    """The register tile of a depthwise convolution of `[N, *spatial, C]` with `channels` outputs."""
    width = lanes(target, dtype)
    outputs = [extent(size) for size in geometry.output_extents(input_shape[1:-1])]
    last = outputs[-1] or _LONGEST_ROW
    steps = range(1, _LONGEST_ROW + 1)
    rows = sorted(steps, key=lambda step: (last / (-(-last // step) * step), step), reverse=True)
    whole = [width * count for count in (2, 1) if channels % (width * count) == 0]
    halves = [size for size in (width // 2, width // 4) if size > 1 and channels % size == 0]
    blocks = (whole + halves) or [width]
    return chosen_tile(target, [Tile((1,) * (len(outputs) - 1) + (row,), block) for row in rows for block in blocks])


def depthwise_instruction(
    target: CpuTarget, tile: Tile, inputs: Dimension, channels: int, source: str
) -> DotInstruction | None:
    """What multiplies and adds 8-bit integers of dtype `source`, for weights packed as int32; None: plain arithmetic.

    It takes whole vectors of neighbouring channels.
    """
    instruction = lane_instruction(target, source)
    if instruction is None or extent(inputs) != channels or channels % tile.block or tile.block % instruction.lanes:
        return None
    return instruction


def depthwise(
    x: te.Tensor,
    weight: te.Tensor,
    *,
    geometry: Window,
    tile: Tile,
    pad_value: Expression | None = None,
    accumulator: str | None = None,
    instruction: DotInstruction | None = None,
    masked: bool = False,
    name: str = "depthwise",
) -> te.Tensor:
    """`out[N, *spatial, C * multiplier]`: each channel convolved with filters of its own.

    `weight[*kernel, C * multiplier]`; the multiplier is the quotient of the channel counts. `pad_value`
    (default zero) fills the border, from a padded copy or (`masked`) from x itself under masks. `instruction` is what
    `depthwise_instruction` gave.
    """
    dtype = accumulator or x.dtype
    channels = extent(weight.shape[-1]) or 0
    multiplier = channels // (extent(x.shape[-1]) or channels)
    outputs = geometry.output_extents(x.shape[1:-1])
    reach = [ceil_to(count, step) for count, step in zip(outputs, tile.rows, strict=True)]
    read, limits = windowed(x, geometry, reach, pad_value, name, masked)
    taps = [te.reduce_axis((0, size), f"k{axis}") for axis, size in enumerate(geometry.kernel)]
    padded = ceil_to(channels, tile.block)

    def element(*index: Expression) -> Expression:
        batch, rows, channel = index[0], index[1:-1], index[-1]
        offsets = [tap.var for tap in taps]
        position = window_index(geometry, reach, limits, rows, offsets)
        own = clamped_channel(channel, channels, padded)
        data = read((batch, *position, tirx.floordiv(own, multiplier) if multiplier > 1 else own))
        return te.sum(data.astype(dtype) * weight[(*offsets, own)].astype(dtype), axis=taps)

    acc = te.compute(
        (x.shape[0], *reach, padded),
        element,
        name=f"{name}_acc",
        attrs=roles.depthwise(tile.rows, tile.block, None if instruction is None else instruction.intrinsic),
    )
    return te.compute((x.shape[0], *outputs, channels), lambda *index: acc[index], name=name)


def clamped_channel(channel: Expression, channels: int, padded: Dimension) -> Expression:
    """The channel index, held inside the tensor where the last block of channels is not full."""
    if extent(padded) == channels:
        return channel
    return tirx.min(channel, channels - 1)
