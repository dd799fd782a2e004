"""Integer contractions: 8-bit activations and weights, exact sums in 32 bits, zero points taken out.

`sum((x - zero) * w) = sum(x * w) - zero * sum(w)`: the kernels multiply the stored integers as they are,
padding holds the zero point, and the second term is one constant a column, computed at compile time
(`compensation`). An instruction that wants the other signedness gets activations shifted by 128, which shifts
their zero point as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tvm import te, tirx

from whet.backends.tvm.intrinsics.instructions import DotInstruction, dot_instruction, widening
from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.contraction import accumulate, flatten_index, static_suffix, unflatten_index
from whet.backends.tvm.kernels.conv import merged_groups, pack_conv_weight
from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.kernels.expressions import Dimension, Expression, extent
from whet.backends.tvm.kernels.tiles import Tile, contraction_tile
from whet.backends.tvm.kernels.windows import Window, border, ceil_to, clamped, window_index

_SIGN_SHIFT = 128
_OFFSETS: dict[tuple[str, str], int] = {("int8", "uint8"): _SIGN_SHIFT, ("uint8", "int8"): -_SIGN_SHIFT}


@dataclass(frozen=True)
class IntegerPlan:
    """What packing, compensation and expression of an integer contraction must agree on.

    `source` is the dtype of the activations; `channels` those that one group reads, rounded up to whole
    groups of the instruction.
    """

    tile: Tile
    groups: int
    instruction: DotInstruction
    source: str
    channels: int

    @property
    def block(self) -> int:
        """Output columns in one packed block of the weight."""
        return self.tile.block

    @property
    def offset(self) -> int:
        """What is added to every activation for the instruction's signedness."""
        return recoding_offset(self.source, self.instruction)


def recoding_offset(source: str, instruction: DotInstruction) -> int:
    """What is added to activations of dtype `source` for the signedness that the instruction wants."""
    return _OFFSETS.get((source, instruction.activation), 0)


def plan_integer_conv(
    target: CpuTarget,
    input_shape: Sequence[Dimension],
    out_channels: int,
    geometry: Window,
    groups: int = 1,
    source: str = "uint8",
) -> IntegerPlan:
    """Choose instruction, tile, block and merged groups for `[N, *spatial, C]` of dtype `source`."""
    instruction = dot_instruction(target)
    merged = merged_groups(groups, out_channels, instruction.lanes)
    if geometry.pointwise and merged == 1:
        return plan_integer_linear(target, input_shape, out_channels, source)
    inputs = extent(input_shape[-1]) or 1
    if merged > 1 and (inputs // merged) % instruction.group:
        instruction = widening(target)
    channels = _rounded(inputs // merged, instruction.group)
    tile = contraction_tile(
        target,
        geometry.output_extents(input_shape[1:-1]),
        out_channels // merged,
        math.prod(geometry.kernel) * channels // instruction.group,
        batch=(extent(input_shape[0]) or 1) * merged,
        dtype="int32",
        exact_block=merged > 1,
        row_bytes=channels * merged * geometry.stride[-1],
    )
    return IntegerPlan(tile, merged, instruction, source, channels)


def plan_integer_linear(
    target: CpuTarget, shape: Sequence[Dimension], out_features: int, source: str = "uint8"
) -> IntegerPlan:
    """Choose instruction, tile and block for activations `[..., K]` of dtype `source`."""
    instruction = dot_instruction(target)
    channels = _rounded(extent(shape[-1]) or 1, instruction.group)
    steps = channels // instruction.group
    rows = [_folded_rows(shape[:-1])]
    tile = contraction_tile(target, rows, out_features, steps, dtype="int32", row_bytes=channels)
    return IntegerPlan(tile, 1, instruction, source, channels)


def pack_integer_conv_weight(weight: torch.Tensor, plan: IntegerPlan, groups: int = 1) -> torch.Tensor:
    """int8 `weight[O, I / groups, *kernel]` as `[O / block, *kernel, I / g, block, g]`, rounded up.

    g is the instruction's group; where it is 1 the last axis is missing. The dtype is the instruction's.
    """
    dtype = getattr(torch, plan.instruction.weight)
    packed = pack_conv_weight(weight, plan.block, groups, plan.groups)
    inner = packed.shape[-2]
    if inner != plan.channels:
        grown = packed.new_zeros((*packed.shape[:-2], plan.channels, plan.block))
        grown[..., :inner, :] = packed
        packed = grown
    if plan.instruction.group == 1:
        return packed.to(dtype).contiguous()
    split = packed.reshape(*packed.shape[:-2], -1, plan.instruction.group, plan.block)
    return split.transpose(-1, -2).to(dtype).contiguous()


def pack_integer_linear_weight(weight: torch.Tensor, plan: IntegerPlan) -> torch.Tensor:
    """int8 `weight[N, K]` as `[ceil(N / block), K / g, block, g]`; see `pack_integer_conv_weight`."""
    return pack_integer_conv_weight(weight, plan)


def compensation(weight: torch.Tensor, zero_point: int, offset: int = 0) -> torch.Tensor:
    """`-(zero_point + offset) * sum(w)` of each output channel, int32 `[O]`: add it to the kernel's result.

    `weight[O, ...]` in torch's layout; `offset` is the plan's (0 for a depthwise convolution).

    Raises:
        OverflowError: the constant does not fit 32 bits.
    """
    sums = weight.to(torch.int64).flatten(1).sum(1)
    values = -(zero_point + offset) * sums
    limits = torch.iinfo(torch.int32)
    if bool(((values < limits.min) | (values > limits.max)).any()):
        raise OverflowError("the zero point times the sum of the weights does not fit 32 bits")
    return values.to(torch.int32)


def integer_conv(
    x: te.Tensor,
    weight: te.Tensor,
    *,
    geometry: Window,
    out_channels: int,
    plan: IntegerPlan,
    zero_point: int = 0,
    name: str = "integer_conv",
) -> te.Tensor:
    """int32 `out[N, *spatial, O] = sum x * w` of the stored integers, the border filled with `zero_point`.

    Add `compensation(weight, zero_point, plan.offset)` to get `sum (x - zero_point) * w`.
    """
    if geometry.pointwise and plan.groups == 1:
        return integer_linear(x, weight, out_features=out_channels, plan=plan, name=name)
    outputs = geometry.output_extents(x.shape[1:-1])
    reach = [ceil_to(count, step) for count, step in zip(outputs, plan.tile.rows, strict=True)]
    source, limits = _recoded_window(x, geometry, reach, plan, zero_point, name)
    taps = [te.reduce_axis((0, size), f"k{axis}") for axis, size in enumerate(geometry.kernel)]
    channels = _ChannelAxes(plan)
    per_group = out_channels // plan.groups

    def product(batch: Sequence[Expression], rows: Sequence[Expression], column: Expression) -> Expression:
        offsets = [tap.var for tap in taps]
        position = window_index(geometry, reach, limits, rows, offsets)
        channel = channels.channel
        if plan.groups > 1:
            channel = tirx.floordiv(column, per_group) * plan.channels + channel
        factor = weight[tuple(channels.weight_index(column, offsets))]
        return source[(*batch, *position, channel)].astype("int32") * factor.astype("int32")

    acc = accumulate(
        [x.shape[0]],
        outputs,
        out_channels,
        [*taps, *channels.axes],
        product,
        plan.tile,
        name=name,
        dot=plan.instruction.group,
        intrinsic=plan.instruction.intrinsic,
    )
    return te.compute((x.shape[0], *outputs, out_channels), lambda *index: acc[index], name=name)


def integer_linear(
    x: te.Tensor, weight: te.Tensor, *, out_features: int, plan: IntegerPlan, name: str = "integer_linear"
) -> te.Tensor:
    """int32 `out[..., N] = sum_k x[..., k] * w`; add `compensation` as for `integer_conv`."""
    lead = list(x.shape[:-1])
    count, _ = static_suffix(lead)
    folded = max(count, min(1, len(lead)))
    batch, tail = lead[: len(lead) - folded], lead[len(lead) - folded :]
    row_extent = _folded_rows(lead)
    reach = ceil_to(row_extent, plan.tile.rows[0])
    source = _recoded(x, plan, name)
    channels = _ChannelAxes(plan)
    kernel = [0] * (len(weight.shape) - (3 if plan.instruction.group == 1 else 4))

    def product(outer: Sequence[Expression], row: Sequence[Expression], column: Expression) -> Expression:
        position = unflatten_index(clamped(row[0], row_extent, reach), tail)
        factor = weight[tuple(channels.weight_index(column, kernel))]
        return source[(*outer, *position, channels.channel)].astype("int32") * factor.astype("int32")

    acc = accumulate(
        batch,
        [row_extent],
        out_features,
        channels.axes,
        product,
        plan.tile,
        name=name,
        flattened=max(1, folded),
        dot=plan.instruction.group,
        intrinsic=plan.instruction.intrinsic,
    )

    def element(*index: Expression) -> Expression:
        outer, row = index[: len(batch)], flatten_index(index[len(batch) : -1], tail)
        return acc[(*outer, row, index[-1])]

    return te.compute((*lead, out_features), element, name=name)


class _ChannelAxes:
    """The reduction over input channels: one axis, or groups and the elements of a group."""

    def __init__(self, plan: IntegerPlan) -> None:
        self._plan = plan
        group = plan.instruction.group
        outer = te.reduce_axis((0, plan.channels // group), "ic")
        self.axes: list[tirx.IterVar] = [outer]
        self.channel: Expression = outer.var
        if group > 1:
            inner = te.reduce_axis((0, group), "q")
            self.axes.append(inner)
            self.channel = outer.var * group + inner.var

    def weight_index(self, column: Expression, taps: Sequence[Expression]) -> list[Expression]:
        """Index into the packed weight for an output column and kernel taps."""
        block = self._plan.block
        lane = tirx.floormod(column, block)
        last = [lane] if len(self.axes) == 1 else [lane, self.axes[1].var]
        return [tirx.floordiv(column, block), *taps, self.axes[0].var, *last]


def _folded_rows(lead: Sequence[Dimension]) -> Dimension:
    """The row extent of a flattened activation: its known trailing dimensions, else its last one."""
    count, rows = static_suffix(lead)
    return rows if count or not lead else lead[-1]


def _rounded(value: int, step: int) -> int:
    return -(-value // step) * step


def _recode(value: Expression, plan: IntegerPlan) -> Expression:
    """An activation in the instruction's dtype, shifted by 128 where the signedness differs."""
    if plan.offset == 0:
        return value.astype(plan.instruction.activation)
    shifted = value.astype("int16") + tirx.const(plan.offset, "int16")
    return shifted.astype(plan.instruction.activation)


def _needs_recoding(x: te.Tensor, plan: IntegerPlan) -> bool:
    return str(x.dtype) != plan.instruction.activation or (extent(x.shape[-1]) or 0) != plan.channels * plan.groups


def _recoded(x: te.Tensor, plan: IntegerPlan, name: str) -> te.Tensor:
    """`x` in the instruction's dtype with its channels rounded up; `x` itself where nothing has to change."""
    if not _needs_recoding(x, plan):
        return x
    known = x.shape[-1]
    zero = tirx.const(0, plan.instruction.activation)
    grown = plan.channels * plan.groups

    def element(*index: Expression) -> Expression:
        value = _recode(x[index], plan)
        return value if extent(known) == grown else tirx.if_then_else(index[-1] < known, value, zero)

    return te.compute((*x.shape[:-1], grown), element, name=f"{name}_recode", attrs=roles.stage())


def _recoded_window(
    x: te.Tensor, geometry: Window, reach: Sequence[Dimension], plan: IntegerPlan, zero_point: int, name: str
) -> tuple[te.Tensor, list[Dimension]]:
    """What the windows read: padded with the zero point, recoded, channels rounded up, in one copy."""
    if not geometry.padded:
        source = _recoded(x, plan, name)
        return source, list(source.shape[1:-1])
    fill = tirx.const(zero_point + plan.offset, plan.instruction.activation)
    grown = border(x.shape[1:-1], geometry, reach)
    known, channels = x.shape[-1], plan.channels * plan.groups

    def element(*index: Expression) -> Expression:
        inside, shifted = grown.source(index[1:-1])
        if extent(known) != channels:
            inside.append(index[-1] < known)
        value = _recode(x[(index[0], *shifted, index[-1])], plan)
        return tirx.if_then_else(tirx.all(*inside), value, fill) if inside else value

    shape = (x.shape[0], *grown.sizes, channels)
    source = te.compute(shape, element, name=f"{name}_pad", attrs=roles.stage())
    return source, list(grown.sizes)
