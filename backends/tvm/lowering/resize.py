"""Sampling feature maps at other positions: interpolation to a size, and at the positions of a grid.

Positions are computed as torch does, in f32 for f32 and narrower types: which element is nearest depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.math import expression_dtype
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.elementwise import at_least
from whet.backends.tvm.lowering.half import named, narrowed, widened
from whet.ir.graph import Operation
from whet.ir.ops.contraction import spatial_dims
from whet.ir.types import DType

_CUBIC = -0.75
"""The free parameter of cubic convolution (Keys 1981), as torch has it."""

_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}

Tap = tuple[Any, Any]
"""Position (int64) of one element along one dimension, and its weight."""


@dataclass(frozen=True)
class _Table:
    """Which elements are read along one dimension, and their weights: computed once, for all channels.

    Both tensors are indexed by the place in the output and by the number of the tap.
    """

    positions: te.Tensor
    weights: te.Tensor | None
    count: int


def _tabulate(shape: Sequence[Any], count: int, tap: Callable[..., Tap], weighted: bool, name: str) -> _Table:
    """The table of `tap(*place, number)` over `shape`."""
    whole = (*shape, count)
    positions = te.compute(whole, lambda *i: tap(*i)[0], name=f"{name}_positions", attrs=roles.stage())
    if not weighted:
        return _Table(positions, None, count)
    return _Table(
        positions, te.compute(whole, lambda *i: tap(*i)[1], name=f"{name}_weights", attrs=roles.stage()), count
    )


def _working(dtype: DType) -> str:
    return "float64" if dtype is DType.F64 else "float32"


def _step(c: LoweringContext, operation: Operation, i: int, size: Any, working: str) -> Any:
    """How far apart input positions of neighbouring outputs are, rounded to `working` as torch does."""
    full, count = c.dim(size), c.dim(operation.attributes["size"][i])
    scales = operation.attributes["scales"]
    if operation.attributes["coordinates"] == "align_corners":
        if isinstance(full, int) and isinstance(count, int):
            return _number((np.dtype(working).type(full - 1) / (count - 1)) if count > 1 else 0, working)
        last = tirx.max(count - 1, 1)
        moved = (full - 1 + tirx.IntImm("int64", 0)).astype(working) / (last + tirx.IntImm("int64", 0)).astype(working)
        return tirx.Select(count > 1, moved, _number(0, working))
    if scales is not None:
        return _number(1.0 / scales[i], working)
    if isinstance(full, int) and isinstance(count, int):
        return _number(np.dtype(working).type(full) / np.dtype(working).type(count), working)
    zero = tirx.IntImm("int64", 0)
    return (full + zero).astype(working) / (count + zero).astype(working)


def _number(value: Any, working: str) -> Any:
    return tirx.const(float(np.dtype(working).type(value)), working)


@dataclass(frozen=True)
class _Axis:
    """Sizes of one spatial dimension before and after."""

    size: Any
    count: Any

    def multiplied(self, factor: int) -> Any:
        """Whether the result is `factor` times as long: a bool, or an expression."""
        if isinstance(self.size, int) and isinstance(self.count, int):
            return self.count == factor * self.size
        return self.count == factor * self.size + tirx.IntImm("int64", 0)


def _chosen(condition: Any, x: Any, y: Any) -> Any:
    """condition ? x : y, decided now where the condition is known."""
    if isinstance(condition, bool):
        return x if condition else y
    return tirx.Select(condition, x, y)


def _tap(mode: str, coordinates: str, index: Any, number: Any, step: Any, axis: _Axis) -> Tap:
    """One of the elements that output `index` needs along one dimension.

    As torch, whose shortcuts for results once and twice as long matter where `scales` disagrees with the sizes.
    """
    working = expression_dtype(step)
    position, half, size = index.astype(working), tirx.const(0.5, working), axis.size
    if mode == "nearest":
        moved = position + half if coordinates == "half_pixel" else position
        nearest = tirx.min(tirx.floor(moved * step).astype("int64"), size - 1)
        if coordinates == "asymmetric":
            nearest = _chosen(axis.multiplied(2), tirx.shift_right(index, tirx.const(1, "int64")), nearest)
            nearest = _chosen(axis.multiplied(1), index, nearest)
        return nearest, None
    source = position * step if coordinates == "align_corners" else step * (position + half) - half
    if mode == "linear":
        return _linear_tap(_chosen(axis.multiplied(1), position, source), number, size)
    first = tirx.floor(source).astype("int64") - 1
    return _held(first + number, size), _cubic_weight(source, number)


def _linear_tap(source: Any, number: Any, size: Any) -> Tap:
    working = expression_dtype(source)
    zero = tirx.const(0, working)

    def position(start: Any) -> Any:
        return tirx.min(tirx.floor(start).astype("int64") + number, size - 1)

    def weight(start: Any) -> Any:
        return _linear_weight(start - tirx.floor(start), number)

    def started(body: Callable[[Any], Any]) -> Any:
        return named("source", source, lambda value: named("start", at_least(value, zero), body))

    return started(position), started(weight)


def _held(position: Any, size: Any) -> Any:
    return tirx.max(tirx.min(position, size - 1), 0)


def _linear_weight(part: Any, number: Any) -> Any:
    one = tirx.const(1, expression_dtype(part))
    return named("part", part, lambda value: tirx.Select(number == 0, one - value, value))


def _cubic_weight(source: Any, number: Any) -> Any:
    """Of the four taps around the position, the first two to its left."""
    working = expression_dtype(source)
    part = source - tirx.floor(source)
    near = tirx.any(number == 1, number == 2)
    distance = tirx.abs(part - (number - 1).astype(working))
    return named("distance", distance, lambda value: tirx.Select(near, _inner(value), _outer(value)))


def _inner(t: Any) -> Any:
    """The kernel for distances up to 1."""
    a2, a3, one = (tirx.const(value, expression_dtype(t)) for value in (_CUBIC + 3, _CUBIC + 2, 1))
    return (a3 * t - a2) * t * t + one


def _outer(t: Any) -> Any:
    """The kernel for distances from 1 to 2."""
    a, a4, a5, a8 = (tirx.const(value * _CUBIC, expression_dtype(t)) for value in (1, 4, 5, 8))
    return ((a * t - a5) * t + a8) * t - a4


def _resize(c: LoweringContext, operation: Operation) -> te.Tensor:
    value, attributes = operation.operand(0), operation.attributes
    x, shape, dtype = c.tensor(value), value.type.shape, value.type.dtype
    dims = list(spatial_dims(len(shape), attributes["layout"]))
    working = _working(dtype)
    mode, coordinates = attributes["mode"], attributes["coordinates"]

    if mode != "nearest" and not dtype.is_float:
        raise c.unsupported(f"{mode} interpolation of {dtype.value}: cast to a floating-point type first")

    def table(i: int, dim: int) -> _Table:
        step, size = _step(c, operation, i, shape[dim], working), c.dim(shape[dim])
        count = c.dim(attributes["size"][i])

        def tap(index: Any, number: Any) -> Tap:
            return _tap(mode, coordinates, index, number, step, _Axis(size, count))

        return _tabulate([count], _TAPS[mode], tap, mode != "nearest", f"resize_{i}")

    tables = [table(i, dim) for i, dim in enumerate(dims)]

    def element(*index: Any) -> Any:
        return _combined(x, index, dims, [(item, [index[dim]]) for item, dim in zip(tables, dims, strict=True)], dtype)

    return te.compute(c.dims(operation.result.type.shape), element, name="resize")


def _combined(
    x: te.Tensor,
    index: Sequence[Any],
    dims: Sequence[int],
    tables: Sequence[tuple[_Table, Sequence[Any]]],
    dtype: DType,
) -> Any:
    """Σ over all combinations of taps of the element times its weights; the innermost dimension is summed first."""

    def along(i: int, place: list[Any]) -> Any:
        if i == len(dims):
            return widened(x(*place))
        table, where = tables[i]
        total: Any = None
        for number in range(table.count):
            position = table.positions(*where, number)
            item = along(i + 1, [*place[: dims[i]], position, *place[dims[i] + 1 :]])
            if table.weights is not None:
                weight = table.weights(*where, number)
                item = item.astype(expression_dtype(weight)) * weight
            total = item if total is None else total + item
        return total

    total = along(0, list(index))
    return narrowed(total, tvm_dtype(dtype))


def _grid_sample(c: LoweringContext, operation: Operation) -> te.Tensor:
    attributes = operation.attributes
    value = operation.operand(0)
    x, grid = c.tensor(value), c.tensor(operation.operand(1))
    shape, dtype = value.type.shape, value.type.dtype
    spatial = len(shape) - 2
    sizes = [c.dim(shape[2 + i]) for i in range(spatial)]

    places = c.dims(operation.operand(1).type.shape[:-1])
    tables = [_grid_table(attributes, places, sizes[i], _grid_positions(c, operation, grid, i)) for i in range(spatial)]

    def element(*index: Any) -> Any:
        where = [index[0], *index[2:]]
        start = [index[0], index[1], *[0] * spatial]
        return _combined(x, start, range(2, 2 + spatial), [(item, where) for item in tables], dtype)

    return te.compute(c.dims(operation.result.type.shape), element, name="grid_sample")


def _grid_positions(c: LoweringContext, operation: Operation, grid: te.Tensor, i: int) -> te.Tensor:
    """Where in spatial dimension i each coordinate of the grid lies. Stages of their own keep the expressions short."""
    attributes, type = operation.attributes, operation.operand(0).type
    size, last = c.dim(type.shape[2 + i]), type.rank - 3
    working = _working(type.dtype)
    one, half = tirx.const(1, working), tirx.const(0.5, working)
    extent = _extent(size, working)

    def unfolded(*place: Any) -> Any:
        # the grid has the last spatial dimension first
        coordinate = widened(grid(*place, last - i))
        if attributes["align_corners"]:
            return (coordinate + one) * half * (extent - one)
        return ((coordinate + one) * extent - one) * half

    shape = grid.shape[:-1]
    positions = te.compute(shape, unfolded, name=f"grid_{i}_unfolded", attrs=roles.stage())
    if attributes["mode"] != "cubic" and attributes["border"] != "zeros":
        positions = _within(positions, extent, attributes, f"grid_{i}")
    low, high = tirx.const(-(2.0**30), working), tirx.const(2.0**30, working)

    def finite(*place: Any) -> Any:
        """A position that a conversion to integers can hold; NaN lies before the first element."""
        position = positions(*place)
        held = tirx.Select(position < low, low, tirx.Select(position > high, high, position))
        return tirx.Select(tirx.isnan(position), low, held)

    return te.compute(shape, finite, name=f"grid_{i}_finite", attrs=roles.stage())


def _extent(size: Any, working: str) -> Any:
    return tirx.const(float(size), working) if isinstance(size, int) else size.astype(working)


def _grid_table(attributes: dict[str, Any], places: Sequence[Any], size: Any, positions: te.Tensor) -> _Table:
    """The taps around each position; weight 0 where a tap lies outside."""
    mode, border, name = attributes["mode"], attributes["border"], str(positions.op.name)
    count, zero = _TAPS[mode], tirx.const(0, positions.dtype)

    def whole(*place: Any) -> Any:
        position, number = positions(*place[:-1]), place[-1]
        if mode == "nearest":
            return tirx.nearbyint(position)
        return tirx.floor(position) + (number - (1 if mode == "cubic" else 0)).astype(positions.dtype)

    taps = te.compute((*places, count), whole, name=f"{name}_taps", attrs=roles.stage())
    if mode == "cubic" and border != "zeros":
        taps = _within(taps, _extent(size, positions.dtype), attributes, f"{name}_taps")

    def held(*place: Any) -> Any:
        return _held(taps(*place).astype("int64"), size)

    def weight(*place: Any) -> Any:
        tap = taps(*place).astype("int64")
        return tirx.Select(tirx.all(tap >= 0, tap < size), _grid_weight(mode, positions(*place[:-1]), place[-1]), zero)

    shape = (*places, count)
    return _Table(
        te.compute(shape, held, name=f"{name}_positions", attrs=roles.stage()),
        te.compute(shape, weight, name=f"{name}_weights", attrs=roles.stage()),
        count,
    )


def _grid_weight(mode: str, position: Any, number: Any) -> Any:
    if mode == "nearest":
        return tirx.const(1, expression_dtype(position))
    if mode == "linear":
        return _linear_weight(position - tirx.floor(position), number)
    return _cubic_weight(position, number)


def _within(positions: te.Tensor, extent: Any, attributes: dict[str, Any], name: str) -> te.Tensor:
    """Positions brought back to 0 ... extent - 1: by clamping, or by mirroring, and clamping."""
    zero, one = tirx.const(0, positions.dtype), tirx.const(1, positions.dtype)
    if attributes["border"] == "reflection":
        positions = _mirrored(positions, extent, attributes["align_corners"], name)

    def clamped(*place: Any) -> Any:
        position = positions(*place)
        return tirx.Select(position < zero, zero, tirx.Select(position > extent - one, extent - one, position))

    return te.compute(positions.shape, clamped, name=f"{name}_within", attrs=roles.stage())


def _mirrored(positions: te.Tensor, extent: Any, align_corners: bool, name: str) -> te.Tensor:
    """Back and forth between the first and the last element, or between the edges half an element beyond them."""
    zero, one, half, two = (tirx.const(number, positions.dtype) for number in (0, 1, 0.5, 2))
    edge, span = (zero, extent - one) if align_corners else (-half, extent)
    safe = tirx.max(span, one)

    def turns(*place: Any) -> Any:
        return tirx.floor(tirx.abs(positions(*place) - edge) / safe)

    turned = te.compute(positions.shape, turns, name=f"{name}_turns", attrs=roles.stage())

    def folded(*place: Any) -> Any:
        count = turned(*place)
        rest = tirx.abs(positions(*place) - edge) - count * safe
        even = count - two * tirx.floor(count * half) == zero
        return tirx.Select(span < one, zero, tirx.Select(even, rest + edge, span - rest + edge))

    return te.compute(positions.shape, folded, name=f"{name}_mirrored", attrs=roles.stage())


LOWERINGS: dict[str, Callable[..., Any]] = {"resize": _resize, "grid_sample": _grid_sample}
