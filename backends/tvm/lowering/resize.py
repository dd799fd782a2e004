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
from whet.backends.tvm.lowering.elementwise import at_least, at_most
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
    return _Table(positions, te.compute(whole, lambda *i: tap(*i)[1], name=f"{name}_weights", attrs=roles.stage()), count)


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


def _tap(mode: str, coordinates: str, index: Any, number: Any, step: Any, size: Any) -> Tap:
    """One of the elements that output `index` needs along one dimension."""
    working = expression_dtype(step)
    position, half = index.astype(working), tirx.const(0.5, working)
    if mode == "nearest":
        moved = position + half if coordinates == "half_pixel" else position
        return tirx.min(tirx.floor(moved * step).astype("int64"), size - 1), None
    source = position * step if coordinates == "align_corners" else step * (position + half) - half
    if mode == "linear":
        return _linear_tap(source, number, size)
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

    def table(i: int, dim: int) -> _Table:
        step, size = _step(c, operation, i, shape[dim], working), c.dim(shape[dim])
        return _tabulate(
            [c.dim(attributes["size"][i])],
            _TAPS[mode],
            lambda index, number: _tap(mode, coordinates, index, number, step, size),
            mode != "nearest",
            f"resize_{i}",
        )

    tables = [table(i, dim) for i, dim in enumerate(dims)]

    def element(*index: Any) -> Any:
        return _combined(x, index, dims, [(item, [index[dim]]) for item, dim in zip(tables, dims, strict=True)], dtype)

    return te.compute(c.dims(operation.result.type.shape), element, name="resize")


def _combined(
    x: te.Tensor, index: Sequence[Any], dims: Sequence[int], tables: Sequence[tuple[_Table, Sequence[Any]]], dtype: DType
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
    if not dtype.is_float and expression_dtype(total) != tvm_dtype(dtype):
        low, high = (tirx.const(float(bound), expression_dtype(total)) for bound in dtype.integer_range)
        return tirx.max(tirx.min(tirx.nearbyint(total), high), low).astype(tvm_dtype(dtype))
    return narrowed(total, tvm_dtype(dtype))


def _grid_sample(c: LoweringContext, operation: Operation) -> te.Tensor:
    attributes = operation.attributes
    value = operation.operand(0)
    x, grid = c.tensor(value), c.tensor(operation.operand(1))
    shape, dtype = value.type.shape, value.type.dtype
    spatial = len(shape) - 2
    sizes = [c.dim(shape[2 + i]) for i in range(spatial)]

    mode, shown = attributes["mode"], c.dims(operation.operand(1).type.shape[:-1])

    def table(i: int) -> _Table:
        def tap(*place: Any) -> Tap:
            # the grid has the last spatial dimension first
            coordinate = widened(grid(*place[:-1], spatial - 1 - i))
            return _grid_tap(attributes, coordinate, place[-1], sizes[i])

        weighted = mode != "nearest" or attributes["border"] == "zeros"
        return _tabulate(shown, _TAPS[mode], tap, weighted, f"grid_{i}")

    tables = [table(i) for i in range(spatial)]

    def element(*index: Any) -> Any:
        where = [index[0], *index[2:]]
        start = [index[0], index[1], *[0] * spatial]
        return _combined(x, start, range(2, 2 + spatial), [(item, where) for item in tables], dtype)

    return te.compute(c.dims(operation.result.type.shape), element, name="grid_sample")


def _grid_tap(attributes: dict[str, Any], coordinate: Any, number: Any, size: Any) -> Tap:
    """One of the elements along one dimension that a coordinate of the grid needs."""
    working = expression_dtype(coordinate)
    zero, one, half = (tirx.const(value, working) for value in (0, 1, 0.5))
    extent = tirx.const(float(size), working) if isinstance(size, int) else size.astype(working)
    if attributes["align_corners"]:
        source = (coordinate + one) * half * (extent - one)
    else:
        source = ((coordinate + one) * extent - one) * half
    border, mode = attributes["border"], attributes["mode"]
    if mode != "cubic" and border != "zeros":
        source = _within(source, extent, border, attributes["align_corners"])

    def tap_of(held: Any) -> Any:
        return _held(position(held), size)

    def weight_of(held: Any) -> Any:
        tap = position(held)
        return tirx.Select(tirx.all(tap >= 0, tap < size), _grid_weight(mode, held, number), zero)

    def position(held: Any) -> Any:
        if mode == "nearest":
            return tirx.nearbyint(held).astype("int64")
        tap = tirx.floor(held).astype("int64") + number
        if mode == "linear":
            return tap
        if border == "zeros":
            return tap - 1
        return _within((tap - 1).astype(working), extent, border, attributes["align_corners"]).astype("int64")

    return _finite(source, tap_of), _finite(source, weight_of)


def _grid_weight(mode: str, position: Any, number: Any) -> Any:
    if mode == "nearest":
        return tirx.const(1, expression_dtype(position))
    if mode == "linear":
        return _linear_weight(position - tirx.floor(position), number)
    return _cubic_weight(position, number)


def _finite(position: Any, body: Callable[[Any], Any]) -> Any:
    """`body` of a position that a conversion to integers can hold; NaN lies before the first element."""
    working = expression_dtype(position)
    low, high = tirx.const(-(2.0**30), working), tirx.const(2.0**30, working)

    def held(value: Any) -> Any:
        number = tirx.Select(tirx.isnan(value), low, value)
        return named("number", number, lambda item: named("above", at_least(item, low), below))

    def below(value: Any) -> Any:
        return named("held", at_most(value, high), body)

    return named("position", position, held)


def _within(position: Any, extent: Any, border: str, align_corners: bool) -> Any:
    """The position brought back to 0 ... extent - 1 by clamping, or by mirroring and clamping."""
    working = expression_dtype(position)
    zero, one = tirx.const(0, working), tirx.const(1, working)

    def clamped(value: Any) -> Any:
        return named("above", at_least(value, zero), lambda above: at_most(above, extent - one))

    if border == "reflection":
        position = _mirrored(position, extent, align_corners)
    return named("inside", position, clamped)


def _mirrored(position: Any, extent: Any, align_corners: bool) -> Any:
    """Back and forth between the first and the last element, or between the edges half an element beyond them."""
    working = expression_dtype(position)
    zero, one, half, two = (tirx.const(number, working) for number in (0, 1, 0.5, 2))
    edge, span = (zero, extent - one) if align_corners else (-half, extent)
    safe = tirx.max(span, one)

    def folded(moved: Any) -> Any:
        return named("turns", tirx.floor(moved / safe), lambda turns: rest(moved, turns))

    def rest(moved: Any, turns: Any) -> Any:
        even = turns - two * tirx.floor(turns * half) == zero
        return named("rest", moved - turns * safe, lambda part: tirx.Select(even, part + edge, span - part + edge))

    return tirx.Select(span < one, zero, named("moved", tirx.abs(position - edge), folded))


LOWERINGS: dict[str, Callable[..., Any]] = {"resize": _resize, "grid_sample": _grid_sample}
