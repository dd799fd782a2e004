"""Contractions by a matrix unit: its registers are loaded straight from the activations, a row of them a row.

For that, neighbouring rows lie at one distance from each other. A window that moves by more than one element reads
the phases of its input instead, one after the other, in each of which it moves by one; padding, phases, missing rows
and missing channels are made in one copy. Where nothing of that is needed there is no copy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from tvm import te, tirx

from whet.backends.tvm.intrinsics.instructions import matrix_instruction
from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.contraction import (
    flatten_index,
    static_suffix,
    unflatten_index,
)
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
from whet.backends.tvm.kernels.expressions import Dimension, Expression, extent
from whet.backends.tvm.kernels.matrix_tiles import View, depth_of, matrix_of, matrix_tile, worthwhile
from whet.backends.tvm.kernels.windows import Border, Window, ceil_to

_VECTOR_BYTES = 64


def plan_matrix_conv(
    target: CpuTarget, input_shape: Sequence[Dimension], out_channels: int, geometry: Window, source: str
) -> DotPlan | None:
    """The plan of a convolution of `[N, *spatial, C]`; None where the target's matrix unit is not for it."""
    kept = _kept_axes(geometry, input_shape[1:-1])
    geometry, input_shape = geometry.leading(kept), (*input_shape[: 1 + kept], input_shape[-1])
    outputs, inputs = known_extents(geometry.output_extents(input_shape[1:-1])), extent(input_shape[-1])
    if outputs is None or inputs is None:
        return None
    moved = geometry.padded or any(step > 1 for step in geometry.stride)
    views = [View(outputs, inputs, math.prod(geometry.kernel), moved)]
    *above, across = geometry.kernel
    if geometry.dilation[-1] == 1 and across > 1:
        # Beside the windows, the padded input that they are cut out of is copied.
        spread = 1.0 + 1.0 / across
        views.append(View(_flat_rows(outputs), inputs * across, math.prod(above), True, spread, unrolled=True))
    return _plan(target, views, out_channels, source, extent(input_shape[0]) or 1)


def _kept_axes(geometry: Window, spatial: Sequence[Dimension]) -> int:
    """How many spatial axes there are without trailing ones of a single element: the one before is then the last."""
    kept = len(spatial)
    while (
        kept > 1 and extent(spatial[kept - 1]) == geometry.kernel[kept - 1] == 1 and not any(geometry.padding[kept - 1])
    ):
        kept -= 1
    return kept


def _flat_rows(outputs: Sequence[int]) -> tuple[int, ...]:
    """The last two axes of the outputs as one."""
    return (*outputs[:-2], math.prod(outputs[-2:]))


def plan_matrix_linear(target: CpuTarget, shape: Sequence[Dimension], out_features: int, source: str) -> DotPlan | None:
    """The plan of a linear layer of `[..., K]`: its rows are the known trailing dimensions, together or two of them."""
    count, rows = static_suffix(shape[:-1])
    known, inputs = [extent(size) or 0 for size in shape[len(shape) - 1 - count : -1]], extent(shape[-1])
    if not count or inputs is None:
        return None
    flat = sum(size != 1 for size in known) <= 1
    views = [View((rows,), inputs, copied=not flat)]
    if count > 1 and not flat:
        views.append(View((known[-2], known[-1]), inputs))
    batch = math.prod(extent(size) or 1 for size in shape[: len(shape) - 1 - count])
    return _plan(target, views, out_features, source, batch)


def plan_matrix_matmul(
    target: CpuTarget,
    batch: Sequence[Dimension],
    rows: Dimension,
    columns: Dimension,
    reduction: Dimension,
    source: str,
) -> DotPlan | None:
    """The plan of `[*batch, rows, reduction] x [*batch, reduction, columns]`."""
    sizes = known_extents((rows, columns, reduction))
    if sizes is None:
        return None
    views = [View((sizes[0],), sizes[2], copied=source == BFLOAT)]
    return _plan(target, views, sizes[1], source, math.prod(extent(size) or 1 for size in batch))


def known_extents(sizes: Sequence[Dimension]) -> tuple[int, ...] | None:
    """The extents as numbers, None where one of them is symbolic."""
    known = [extent(size) for size in sizes]
    return None if None in known else tuple(size for size in known if size is not None)


def _plan(target: CpuTarget, views: Sequence[View], columns: int, source: str, batch: int) -> DotPlan | None:
    instruction = matrix_instruction(target, "int16" if source == BFLOAT else source)
    if instruction is None:
        return None
    useful = [view for view in views if worthwhile(math.prod(view.rows), view.channels, instruction)]
    if not useful:
        return None
    tile, view = matrix_tile(target, useful, columns, instruction, batch=batch)
    depth, channels = depth_of(view.channels, instruction)
    shaped = replace(instruction, matrix=matrix_of(tile, depth, instruction))
    return DotPlan(tile, 1, shaped, source, channels, view.unrolled)


def matrix_conv(
    x: te.Tensor, weight: te.Tensor, *, geometry: Window, out_channels: int, plan: DotPlan, zero_point: int, name: str
) -> te.Tensor:
    """See `dot_conv`."""
    kept = _kept_axes(geometry, x.shape[1:-1])
    if kept < len(geometry.kernel):
        single = [0] * (len(geometry.kernel) - kept)
        shape = (*x.shape[: 1 + kept], x.shape[-1])
        line = te.compute(shape, lambda *index: x[(*index[:-1], *single, index[-1])], name=f"{name}_line")
        y = matrix_conv(
            line,
            weight,
            geometry=geometry.leading(kept),
            out_channels=out_channels,
            plan=plan,
            zero_point=zero_point,
            name=name,
        )
        outputs = (*y.shape[:-1], *(1 for _ in single), out_channels)
        return te.compute(outputs, lambda *index: y[(*index[: 1 + kept], index[-1])], name=name)
    if plan.unrolled:
        return _unrolled_conv(x, weight, geometry, out_channels, plan, zero_point, name)
    outputs = geometry.output_extents(x.shape[1:-1])
    reach = [ceil_to(count, step) for count, step in zip(outputs, plan.tile.rows, strict=True)]
    source = _windows(x, geometry, reach, plan, zero_point, name)
    phases = len(source.shape) - len(x.shape)
    taps = [te.reduce_axis((0, size), f"k{axis}") for axis, size in enumerate(geometry.kernel)]
    channels = ChannelAxes(plan)
    # The weight has kept the axes of a single element.
    single = [0] * (len(weight.shape) - 4 - len(taps))

    def product(batch: Sequence[Expression], rows: Sequence[Expression], column: Expression) -> Expression:
        steps = _steps(geometry, taps)
        phase = [tirx.floormod(place, step) for place, step in steps] if phases else []
        position = [row + tirx.floordiv(place, step) for row, (place, step) in zip(rows, steps, strict=True)]
        factor = weight[tuple(channels.weight_index(column, [*(tap.var for tap in taps), *single]))]
        return dot_term(source[(*batch, *phase, *position, channels.channel)], factor, plan)

    acc = dot_sums([x.shape[0]], outputs, out_channels, [*taps, *channels.axes], product, plan, source, name)
    return te.compute((x.shape[0], *outputs, out_channels), lambda *index: acc[index], name=name)


def _steps(geometry: Window, taps: Sequence[tirx.IterVar]) -> list[tuple[Expression, int]]:
    """How far each tap is from the first one, and the stride along its axis."""
    pairs = zip(taps, geometry.dilation, geometry.stride, strict=False)
    return [(tap.var * dilation, stride) for tap, dilation, stride in pairs]


def _shifts(geometry: Window) -> list[int]:
    """How many positions of a phase the last tap of each axis is behind the first one."""
    axes = zip(geometry.kernel, geometry.dilation, geometry.stride, strict=True)
    return [(size - 1) * dilation // step for size, dilation, step in axes]


def _unrolled_conv(
    x: te.Tensor, weight: te.Tensor, geometry: Window, out_channels: int, plan: DotPlan, zero_point: int, name: str
) -> te.Tensor:
    """The taps of the last axis lie side by side as channels: then all outputs of a plane are rows of one matrix."""
    outputs = geometry.output_extents(x.shape[1:-1])
    folded = min(2, len(outputs))
    lead, tail = list(outputs[:-folded]), list(outputs[-folded:])
    count = math.prod(extent(size) or 0 for size in tail)
    rows = [*lead, count]
    reach = [ceil_to(row, step) for row, step in zip(rows, plan.tile.rows, strict=True)]
    source = _unrolled(x, geometry, reach, plan, zero_point, name)
    taps = [te.reduce_axis((0, size), f"k{axis}") for axis, size in enumerate(geometry.kernel[:-1])]
    channels, width = ChannelAxes(plan), outputs[-1]

    def product(batch: Sequence[Expression], rows: Sequence[Expression], column: Expression) -> Expression:
        steps = _steps(geometry, taps)
        phase = [tirx.floormod(place, step) for place, step in steps]
        moves = [tirx.floordiv(place, step) for place, step in steps]
        above = [row + move for row, move in zip(rows[:-1], moves, strict=False)]
        row = rows[-1] + moves[-1] * width if folded == 2 else rows[-1]
        factor = weight[tuple(channels.weight_index(column, [tap.var for tap in taps]))]
        place = [tirx.floordiv(row, width), tirx.floormod(row, width)] if folded == 2 else [row]
        return dot_term(source[(*batch, *phase, *above, *place, channels.channel)], factor, plan)

    acc = dot_sums([x.shape[0]], rows, out_channels, [*taps, *channels.axes], product, plan, source, name, folded)

    def element(*index: Expression) -> Expression:
        image, above, row = index[0], index[1 : 1 + len(lead)], index[1 + len(lead) : -1]
        return acc[(image, *above, flatten_index(row, tail), index[-1])]

    return te.compute((x.shape[0], *outputs, out_channels), element, name=name)


def _unrolled(
    x: te.Tensor, geometry: Window, reach: Sequence[Dimension], plan: DotPlan, zero_point: int, name: str
) -> te.Tensor:
    """`[N, *phases, *positions, column, taps * C]`: the windows of a line, one after the other.

    The last axis has no phases. The schedule makes one axis of lines and columns.
    """
    outputs, inputs = geometry.output_extents(x.shape[1:-1]), extent(x.shape[-1]) or 0
    width, above = outputs[-1], len(outputs) - 1
    shifts = _shifts(geometry)
    # Lines that all rows reach, each of which lies one below the other.
    lines = [ceil_to(size, width) // width for size in reach[-1:]] if above else []
    positions = [size + shift for size, shift in zip([*reach[:-1], *lines], shifts, strict=False)]
    phases = list(geometry.stride[:-1])
    dtype, fill = plan.instruction.activation, tirx.const(zero_point + plan.offset, plan.instruction.activation)
    # What the last window reads of channels that are rounded up, and whole vectors for the copy.
    across = rounded_up((width - 1) * geometry.stride[-1] * inputs + plan.channels, _VECTOR_BYTES)
    extents = [position * phase for position, phase in zip(positions, phases, strict=True)]
    *befores, before = (amount for amount, _ in geometry.padding)
    begin, end = before * inputs, (before + x.shape[-2]) * inputs

    edges = Border(tuple(x.shape[1:-2]), tuple(befores), tuple(extents))

    def padded(*index: Expression) -> Expression:
        flat = index[-1] - begin
        inside, places = edges.source(index[1:-1])
        inside += [index[-1] >= begin, index[-1] < end]
        place = (index[0], *places, tirx.floordiv(flat, inputs), tirx.floormod(flat, inputs))
        return tirx.if_then_else(tirx.all(*inside), shifted(x[place], dtype, plan.offset), fill)

    grown = te.compute((x.shape[0], *extents, across), padded, name=f"{name}_pad", attrs=roles.stage())

    def element(*index: Expression) -> Expression:
        phase, position, column, channel = index[1 : 1 + above], index[1 + above : -2], index[-2], index[-1]
        places = [at * step + part for at, step, part in zip(position, phases, phase, strict=True)]
        return grown[(index[0], *places, column * (geometry.stride[-1] * inputs) + channel)]

    rows = width if above else reach[-1]
    shape = (x.shape[0], *phases, *positions, rows, plan.channels)
    return te.compute(shape, element, name=f"{name}_windows", attrs=roles.stage(folded=bool(above)))


def _windows(
    x: te.Tensor, geometry: Window, reach: Sequence[Dimension], plan: DotPlan, zero_point: int, name: str
) -> te.Tensor:
    """What the windows read, as `[N, *phases, *positions, C]`; without phases where no window skips an element."""
    outputs, strides = geometry.output_extents(x.shape[1:-1]), geometry.stride
    skips = any(step > 1 for step in strides)
    whole = all(same_extent(count, asked) for count, asked in zip(outputs, reach, strict=True))
    if not skips and not geometry.padded and whole and _readable(x, plan):
        return x
    shifts = _shifts(geometry)
    extents = [count + shift for count, shift in zip(reach, shifts, strict=True)]
    phases = [step if size > 1 else 1 for step, size in zip(strides, geometry.kernel, strict=True)] if skips else []
    dtype = plan.instruction.activation
    fill = tirx.const(zero_point + plan.offset, dtype)
    reached = tuple(size * step for size, step in zip(extents, strides, strict=True))
    edges = Border(tuple(x.shape[1:-1]), tuple(before for before, _ in geometry.padding), reached)

    def element(*index: Expression) -> Expression:
        phase, position = index[1 : 1 + len(phases)], index[1 + len(phases) : -1]
        steps = itertools.zip_longest(position, strides, phase, fillvalue=0)
        inside, places = edges.source([at * step + part for at, step, part in steps])
        if not same_extent(x.shape[-1], plan.channels):
            inside.append(index[-1] < x.shape[-1])
        value = shifted(x[(index[0], *places, index[-1])], dtype, plan.offset)
        return tirx.if_then_else(tirx.all(*inside), value, fill) if inside else value

    shape = (x.shape[0], *phases, *extents, plan.channels)
    return te.compute(shape, element, name=f"{name}_windows", attrs=roles.stage())


def matrix_linear(x: te.Tensor, weight: te.Tensor, *, out_features: int, plan: DotPlan, name: str) -> te.Tensor:
    """See `dot_linear`."""
    lead, axes = list(x.shape[:-1]), len(plan.tile.rows)
    count, flat = static_suffix(lead)
    count = count if axes == 1 else axes
    batch, tail = lead[: len(lead) - count], lead[len(lead) - count :]
    rows = [flat] if axes == 1 else [extent(size) for size in tail]
    reach = [ceil_to(row, step) for row, step in zip(rows, plan.tile.rows, strict=True)]
    source, copied = _rows(x, plan, batch, tail, rows, reach, name)
    channels = ChannelAxes(plan)
    kernel = [0] * (len(weight.shape) - 4)

    def product(outer: Sequence[Expression], row: Sequence[Expression], column: Expression) -> Expression:
        as_it_is = copied or axes > 1
        place = list(row) if as_it_is else [0 if extent(size) == 1 else row[0] for size in tail]
        factor = weight[tuple(channels.weight_index(column, kernel))]
        return dot_term(source[(*outer, *place, channels.channel)], factor, plan)

    flattened = count if axes == 1 else 1
    acc = dot_sums(batch, rows, out_features, channels.axes, product, plan, source, name, max(1, flattened))

    def element(*index: Expression) -> Expression:
        outer, row = index[: len(batch)], index[len(batch) : -1]
        return acc[(*outer, *([flatten_index(row, tail)] if axes == 1 else row), index[-1])]

    return te.compute((*lead, out_features), element, name=name)


def _rows(
    x: te.Tensor,
    plan: DotPlan,
    batch: Sequence[Dimension],
    tail: Sequence[Dimension],
    rows: Sequence[Dimension],
    reach: Sequence[Dimension],
    name: str,
) -> tuple[te.Tensor, bool]:
    """`x` as `[*batch, *reach, channels]` and True, or `x` itself and False where it can be read as it is."""
    flat = len(rows) == 1 and sum(extent(size) != 1 for size in tail) > 1
    whole = all(same_extent(row, asked) for row, asked in zip(rows, reach, strict=True))
    if not flat and whole and _readable(x, plan):
        return x, False
    dtype = plan.instruction.activation
    zero = tirx.const(0, dtype)

    def element(*index: Expression) -> Expression:
        outer, row = index[: len(batch)], index[len(batch) : -1]
        inside = [
            place < size for place, size, asked in zip(row, rows, reach, strict=True) if not same_extent(size, asked)
        ]
        if not same_extent(x.shape[-1], plan.channels):
            inside.append(index[-1] < x.shape[-1])
        place = unflatten_index(row[0], tail) if len(rows) == 1 else list(row)
        value = shifted(x[(*outer, *place, index[-1])], dtype, plan.offset)
        return tirx.if_then_else(tirx.all(*inside), value, zero) if inside else value

    copy = te.compute((*batch, *reach, plan.channels), element, name=f"{name}_rows", attrs=roles.stage())
    return copy, True


def matrix_left(a: te.Tensor, plan: DotPlan, name: str) -> te.Tensor:
    """The left-hand side of a matrix product, `[..., rows, channels]`, rounded up to whole tiles and steps."""
    reach = ceil_to(a.shape[-2], plan.tile.rows[0])
    source, _ = _rows(a, plan, a.shape[:-2], [a.shape[-2]], [a.shape[-2]], [reach], name)
    return source


def _readable(x: te.Tensor, plan: DotPlan) -> bool:
    """Whether activations are read where they are: in the instruction's dtype, bf16 in an argument of the function."""
    if not same_extent(x.shape[-1], plan.channels):
        return False
    if str(x.dtype) == BFLOAT:
        return isinstance(x.op, te.PlaceholderOp)
    return str(x.dtype) == plan.instruction.activation
