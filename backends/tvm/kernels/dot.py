"""Contractions by dot instructions: short rows of 8- or 16-bit numbers are multiplied and summed at once.

The reduction over channels is cut into groups, as many channels as one instruction multiplies; weights lie packed
so that one vector holds a group of each of its columns, and activations keep their order. What the instruction wants
otherwise (signedness, whole groups) is done in one copy before, together with the padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tvm import te, tirx

from whet.backends.tvm.intrinsics.instructions import (
    DotInstruction,
    bfloat_instruction,
    dot_instruction,
    widening,
)
from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.contraction import (
    flatten_index,
    static_suffix,
    unflatten_index,
)
from whet.backends.tvm.kernels.conv import merged_groups, pack_conv_weight
from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.kernels.dot_plan import (
    BFLOAT,
    ChannelAxes,
    DotPlan,
    dot_sums,
    dot_term,
    rounded_up,
    same_extent,
    shifted,
)
from whet.backends.tvm.kernels.expressions import Dimension, Expression, element_bytes, extent
from whet.backends.tvm.kernels.integer import operand_shift
from whet.backends.tvm.kernels.matmul import aligned, broadcast_shape
from whet.backends.tvm.kernels.matrix import (
    matrix_conv,
    matrix_left,
    matrix_linear,
    plan_matrix_conv,
    plan_matrix_linear,
    plan_matrix_matmul,
)
from whet.backends.tvm.kernels.tiles import Tile, contraction_tile
from whet.backends.tvm.kernels.windows import Window, border, ceil_to, clamped, floordiv, window_index

# Any dtype of so many bits.
_BY_WIDTH = {32: "int32", 64: "int64"}


def has_dot(target: CpuTarget, source: str) -> bool:
    """Whether contractions of this dtype have an instruction; integers always have, plain arithmetic if need be."""
    return source != BFLOAT or bfloat_instruction(target) is not None


def _instruction(target: CpuTarget, source: str, rows: Dimension | None, signed_weights: bool = True) -> DotInstruction:
    """The instruction for activations of dtype `source`, `rows` of them side by side (None: any number)."""
    known = None if rows is None else extent(rows)
    if source != BFLOAT:
        return dot_instruction(target, source, rows=known, signed_weights=signed_weights)
    instruction = bfloat_instruction(target, rows=known)
    if instruction is None:
        raise ValueError(f"{target.name} has no instruction for {source}: ask has_dot first")
    return instruction


def plan_dot_conv(
    target: CpuTarget,
    input_shape: Sequence[Dimension],
    out_channels: int,
    geometry: Window,
    groups: int = 1,
    source: str = "uint8",
) -> DotPlan:
    """Choose instruction, tile, block and merged groups for `[N, *spatial, C]` of dtype `source`."""
    if groups == 1 and not geometry.pointwise:
        matrix = plan_matrix_conv(target, input_shape, out_channels, geometry, source)
        if matrix is not None:
            return matrix
    outputs = geometry.output_extents(input_shape[1:-1])
    # The rows of a matrix instruction share their columns, but what a group reads depends on the column.
    instruction = _instruction(target, source, 1 if groups > 1 else outputs[-1])
    inputs = extent(input_shape[-1]) or 1
    merged = merged_groups(groups, out_channels, instruction.lanes)
    fitting = _fitting_groups(groups, merged, inputs, out_channels, instruction)
    if source == BFLOAT or merged <= fitting * instruction.group:
        merged = fitting
    else:
        instruction = widening(target)
    if geometry.pointwise and merged == 1:
        return plan_dot_linear(target, input_shape, out_channels, source)
    channels = rounded_up(inputs // merged, instruction.group)
    tile = _tile(
        target,
        instruction,
        outputs,
        out_channels // merged,
        channels,
        steps=math.prod(geometry.kernel),
        batch=(extent(input_shape[0]) or 1) * merged,
        exact_block=merged > 1,
        row_bytes=element_bytes(source) * channels * merged * geometry.stride[-1],
    )
    return DotPlan(tile, merged, instruction, source, channels)


def groups_fit(target: CpuTarget, groups: int, inputs: Dimension, outputs: int, source: str) -> bool:
    """Whether the groups of a convolution need not be merged further for the instruction than for full vectors."""
    instruction = _instruction(target, source, 1 if groups > 1 else None)
    merged = merged_groups(groups, outputs, instruction.lanes)
    return merged == _fitting_groups(groups, merged, extent(inputs) or 1, outputs, instruction)


def _fitting_groups(groups: int, most: int, inputs: int, outputs: int, instruction: DotInstruction) -> int:
    """The largest number of groups up to `most` to merge into that fill whole vectors and groups of the instruction.

    A single group always does: it is padded.
    """
    return next(
        count
        for count in range(most, 0, -1)
        if count == 1
        or (
            groups % count == 0
            and outputs // count % instruction.lanes == 0
            and inputs // count % instruction.group == 0
        )
    )


def plan_dot_linear(target: CpuTarget, shape: Sequence[Dimension], out_features: int, source: str = "uint8") -> DotPlan:
    """Choose instruction, tile and block for activations `[..., K]` of dtype `source`."""
    matrix = plan_matrix_linear(target, shape, out_features, source)
    if matrix is not None:
        return matrix
    rows = _folded_rows(shape[:-1])
    instruction = _instruction(target, source, rows)
    channels = rounded_up(extent(shape[-1]) or 1, instruction.group)
    tile = _tile(target, instruction, [rows], out_features, channels, row_bytes=element_bytes(source) * channels)
    return DotPlan(tile, 1, instruction, source, channels)


def plan_dot_matmul(
    target: CpuTarget,
    batch: Sequence[Dimension],
    rows: Dimension,
    columns: Dimension,
    reduction: Dimension,
    source: str,
) -> DotPlan:
    """Choose instruction, tile and block of `[*batch, rows, reduction] x [*batch, reduction, columns]`."""
    matrix = plan_matrix_matmul(target, batch, rows, columns, reduction, source)
    if matrix is not None:
        return matrix
    instruction = _instruction(target, source, rows, signed_weights=False)
    channels = ceil_to(reduction, instruction.group)
    count = math.prod(extent(size) or 1 for size in batch)
    row_bytes = element_bytes(source) * (extent(channels) or 0)
    tile = _tile(target, instruction, [rows], columns, channels, batch=count, row_bytes=row_bytes)
    return DotPlan(tile, 1, instruction, source, channels)


def _tile(
    target: CpuTarget,
    instruction: DotInstruction,
    rows: Sequence[Dimension],
    columns: Dimension,
    channels: Dimension,
    *,
    steps: int = 1,
    batch: int = 1,
    exact_block: bool = False,
    row_bytes: int = 0,
) -> Tile:
    """The register tile of sums over `steps` times `channels`; its innermost rows are whole rows of the instruction.

    A vector is a row of lanes to the model. That of a matrix instruction is one of its columns, for all its rows: then
    the rows that it takes count as one.
    """
    *outer, last = rows
    tile = contraction_tile(
        target,
        [*outer, floordiv(ceil_to(last, instruction.rows), instruction.rows)],
        columns,
        floordiv(channels, instruction.group) * steps,
        batch=batch,
        dtype=_BY_WIDTH[target.vector_bits // instruction.columns],
        exact_block=exact_block,
        row_bytes=row_bytes * instruction.rows,
        spread=instruction.spread,
    )
    return Tile((*tile.rows[:-1], tile.rows[-1] * instruction.rows), tile.block)


def pack_dot_conv_weight(weight: torch.Tensor, plan: DotPlan, groups: int = 1) -> torch.Tensor:
    """`weight[O, I / groups, *kernel]` as `[O / block, *kernel, I / g, block, g]`, rounded up.

    g is the instruction's group; where it is 1 the last axis is missing. The dtype is the instruction's: bf16 numbers
    become their bits.
    """
    dtype = getattr(torch, plan.instruction.weight)
    weight = weight.view(dtype) if plan.instruction.is_float else weight
    weight = _unrolled(weight) if plan.unrolled else weight
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


def _unrolled(weight: torch.Tensor) -> torch.Tensor:
    """`weight[O, I, *kernel, k]` as `[O, k * I, *kernel]`; trailing axes of one tap are left out before."""
    while weight.ndim > 3 and weight.shape[-1] == 1:
        weight = weight.squeeze(-1)
    return weight.movedim(-1, 1).flatten(1, 2)


def pack_dot_linear_weight(weight: torch.Tensor, plan: DotPlan) -> torch.Tensor:
    """`weight[N, K]` as `[ceil(N / block), K / g, block, g]`; see `pack_dot_conv_weight`."""
    return pack_dot_conv_weight(weight, plan)


def dot_conv(
    x: te.Tensor,
    weight: te.Tensor,
    *,
    geometry: Window,
    out_channels: int,
    plan: DotPlan,
    zero_point: int = 0,
    name: str = "dot_conv",
) -> te.Tensor:
    """`out[N, *spatial, O] = sum x * w` of the stored numbers in 32 bits, the border filled with `zero_point`.

    For integers add `compensation(weight, zero_point, plan.offset)` to get `sum (x - zero_point) * w`.
    """
    if geometry.pointwise and plan.groups == 1:
        return dot_linear(x, weight, out_features=out_channels, plan=plan, name=name)
    if plan.instruction.matrix is not None:
        return matrix_conv(
            x, weight, geometry=geometry, out_channels=out_channels, plan=plan, zero_point=zero_point, name=name
        )
    outputs = geometry.output_extents(x.shape[1:-1])
    reach = [ceil_to(count, step) for count, step in zip(outputs, plan.tile.rows, strict=True)]
    source, limits = _recoded_window(x, geometry, reach, plan, zero_point, name)
    taps = [te.reduce_axis((0, size), f"k{axis}") for axis, size in enumerate(geometry.kernel)]
    channels = ChannelAxes(plan)
    per_group = out_channels // plan.groups

    def product(batch: Sequence[Expression], rows: Sequence[Expression], column: Expression) -> Expression:
        offsets = [tap.var for tap in taps]
        position = window_index(geometry, reach, limits, rows, offsets)
        channel = channels.channel
        if plan.groups > 1:
            channel = tirx.floordiv(column, per_group) * plan.channels + channel
        factor = weight[tuple(channels.weight_index(column, offsets))]
        return dot_term(source[(*batch, *position, channel)], factor, plan)

    reduction = [*taps, *channels.axes]
    acc = dot_sums([x.shape[0]], outputs, out_channels, reduction, product, plan, source, name)
    return te.compute((x.shape[0], *outputs, out_channels), lambda *index: acc[index], name=name)


def dot_linear(
    x: te.Tensor, weight: te.Tensor, *, out_features: int, plan: DotPlan, name: str = "dot_linear"
) -> te.Tensor:
    """`out[..., N] = sum_k x[..., k] * w` in 32 bits; add `compensation` as for `dot_conv`."""
    if plan.instruction.matrix is not None:
        return matrix_linear(x, weight, out_features=out_features, plan=plan, name=name)
    lead = list(x.shape[:-1])
    count, _ = static_suffix(lead)
    folded = max(count, min(1, len(lead)))
    batch, tail = lead[: len(lead) - folded], lead[len(lead) - folded :]
    row_extent = _folded_rows(lead)
    reach = ceil_to(row_extent, plan.tile.rows[0])
    source = _recoded(x, plan, plan.offset, name)
    channels = ChannelAxes(plan)
    kernel = [0] * (len(weight.shape) - (3 if plan.instruction.group == 1 else 4))

    def product(outer: Sequence[Expression], row: Sequence[Expression], column: Expression) -> Expression:
        position = unflatten_index(clamped(row[0], row_extent, reach), tail)
        factor = weight[tuple(channels.weight_index(column, kernel))]
        return dot_term(source[(*outer, *position, channels.channel)], factor, plan)

    acc = dot_sums(batch, [row_extent], out_features, channels.axes, product, plan, source, name, max(1, folded))

    def element(*index: Expression) -> Expression:
        outer, row = index[: len(batch)], flatten_index(index[len(batch) : -1], tail)
        return acc[(*outer, row, index[-1])]

    return te.compute((*lead, out_features), element, name=name)


def dot_matmul(
    a: te.Tensor,
    b: te.Tensor,
    *,
    plan: DotPlan,
    zero_points: tuple[int, int] = (0, 0),
    transpose_b: bool = False,
    name: str = "dot_matmul",
) -> te.Tensor:
    """`out[..., m, n] = sum_k (a[..., m, k] - za) * (b[..., k, n] - zb)` in 32 bits; `b[..., n, k]` if `transpose_b`.

    Leading dimensions broadcast as in NumPy. The right-hand side is packed at run time. What the instruction takes may
    be shifted on the way: 16-bit operands by their zero points, which are then gone; 8-bit ones to the signedness that
    is wanted, and the sums of rows and columns take their zero points out again.
    """
    shifts = (
        operand_shift(str(a.dtype), plan.instruction.activation, zero_points[0]),
        operand_shift(str(b.dtype), plan.instruction.weight, zero_points[1]),
    )
    rows, columns = a.shape[-2], b.shape[-2] if transpose_b else b.shape[-1]
    batch = broadcast_shape(a.shape[:-2], b.shape[:-2])
    left = _recoded(a, plan, shifts[0], name) if plan.instruction.matrix is None else matrix_left(a, plan, name)
    right = _packed(b, plan, shifts[1], transpose_b, name)
    reach = ceil_to(rows, plan.tile.rows[0])
    channels = ChannelAxes(plan)

    def product(outer: Sequence[Expression], row: Sequence[Expression], column: Expression) -> Expression:
        item = left[(*aligned(outer, a.shape[:-2]), clamped(row[0], left.shape[-2], reach), channels.channel)]
        factor = right[(*aligned(outer, b.shape[:-2]), *channels.weight_index(column, []))]
        return dot_term(item, factor, plan)

    acc = dot_sums(batch, [rows], columns, channels.axes, product, plan, left, name)
    # Shifted by sa and sb: sum (a - za) (b - zb) = sum a' b' - za' sum b' - zb' sum a' + K za' zb', where sum a' is
    # sum a + K sa.
    za, zb = (zero_point + shift for zero_point, shift in zip(zero_points, shifts, strict=True))
    row_sums = _sums(a, len(a.shape) - 1, f"{name}_rows") if zb else None
    column_sums = _sums(b, len(b.shape) - (1 if transpose_b else 2), f"{name}_columns") if za else None
    constant = za * zb - za * shifts[1] - zb * shifts[0]

    def element(*index: Expression) -> Expression:
        outer, row, column = index[:-2], index[-2], index[-1]
        total = acc[index]
        if row_sums is not None:
            total = total - row_sums[(*aligned(outer, a.shape[:-2]), row)] * zb
        if column_sums is not None:
            total = total - column_sums[(*aligned(outer, b.shape[:-2]), column)] * za
        return total + _times(a.shape[-1], constant) if constant else total

    return te.compute((*batch, rows, columns), element, name=name)


def _packed(b: te.Tensor, plan: DotPlan, shift: int, transposed: bool, name: str) -> te.Tensor:
    """`b[..., k, n]` (`b[..., n, k]` if `transposed`) as `[..., n / block, k / g, block, g]`, filled up with zeros."""
    block, group = plan.block, plan.instruction.group
    columns, terms = (b.shape[-2], b.shape[-1]) if transposed else (b.shape[-1], b.shape[-2])
    zero = tirx.const(0, plan.instruction.weight)

    def element(*index: Expression) -> Expression:
        outer, (part, step, lane) = index[: len(b.shape) - 2], index[len(b.shape) - 2 : len(b.shape) + 1]
        k = step * group + index[-1] if group > 1 else step
        column = clamped(part * block + lane, columns, ceil_to(columns, block))
        value = shifted(b[(*outer, column, k) if transposed else (*outer, k, column)], plan.instruction.weight, shift)
        return value if same_extent(terms, plan.channels) else tirx.if_then_else(k < terms, value, zero)

    parts, steps = floordiv(ceil_to(columns, block), block), floordiv(plan.channels, group)
    shape = (*b.shape[:-2], parts, steps, block, *([group] if group > 1 else []))
    return te.compute(shape, element, name=f"{name}_pack", attrs=roles.stage())


def _sums(x: te.Tensor, axis: int, name: str) -> te.Tensor:
    """int32 sums over one axis."""
    inner = te.reduce_axis((0, x.shape[axis]), "k")
    shape = [*x.shape[:axis], *x.shape[axis + 1 :]]

    def element(*index: Expression) -> Expression:
        return te.sum(x[(*index[:axis], inner.var, *index[axis:])].astype("int32"), axis=inner)

    return te.compute(shape, element, name=name)


def _folded_rows(lead: Sequence[Dimension]) -> Dimension:
    """The row extent of a flattened activation: its known trailing dimensions, else its last one."""
    count, rows = static_suffix(lead)
    return rows if count or not lead else lead[-1]


def _times(size: Dimension, factor: int) -> Expression:
    """An int32 product, modulo 2³²: parts of a sum may wrap where the sum does not (numerics: Q5)."""
    known = extent(size)
    if known is None:
        return size.astype("int32") * factor
    return (known * factor + 2**31) % 2**32 - 2**31


def _recoded(x: te.Tensor, plan: DotPlan, shift: int, name: str) -> te.Tensor:
    """`x` in the instruction's dtype with its channels rounded up; `x` itself where nothing has to change."""
    dtype, known, grown = plan.instruction.activation, x.shape[-1], plan.channels * plan.groups
    whole = same_extent(known, grown) or plan.instruction.group == 1
    if whole and shift == 0 and (str(x.dtype) == dtype or _readable(x, plan.instruction)):
        return x

    def element(*index: Expression) -> Expression:
        value = shifted(x[index], dtype, shift)
        return value if whole else tirx.if_then_else(index[-1] < known, value, tirx.const(0, dtype))

    return te.compute((*x.shape[:-1], grown), element, name=f"{name}_recode", attrs=roles.stage())


def _readable(x: te.Tensor, instruction: DotInstruction) -> bool:
    """Whether bf16 activations are read where they are: in an argument of the function, one row at a time."""
    return str(x.dtype) == BFLOAT and instruction.rows == 1 and isinstance(x.op, te.PlaceholderOp)


def _recoded_window(
    x: te.Tensor, geometry: Window, reach: Sequence[Dimension], plan: DotPlan, zero_point: int, name: str
) -> tuple[te.Tensor, list[Dimension]]:
    """What the windows read: padded with the zero point, recoded, channels rounded up, in one copy."""
    if not geometry.padded:
        source = _recoded(x, plan, plan.offset, name)
        return source, list(source.shape[1:-1])
    dtype = plan.instruction.activation
    fill = tirx.const(zero_point + plan.offset, dtype)
    grown = border(x.shape[1:-1], geometry, reach)
    known, channels = x.shape[-1], plan.channels * plan.groups

    def element(*index: Expression) -> Expression:
        inside, position = grown.source(index[1:-1])
        if not same_extent(known, channels):
            inside.append(index[-1] < known)
        value = shifted(x[(index[0], *position, index[-1])], dtype, plan.offset)
        return tirx.if_then_else(tirx.all(*inside), value, fill) if inside else value

    shape = (x.shape[0], *grown.sizes, channels)
    source = te.compute(shape, element, name=f"{name}_pad", attrs=roles.stage())
    return source, list(grown.sizes)
