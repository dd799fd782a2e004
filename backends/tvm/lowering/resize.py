"""Sampling feature maps at other positions: interpolation to a size, and at the positions of a grid.

Positions are computed as torch does, in f32 for f32 and narrower types: which element is nearest depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from whet.backends.tvm.kernels.math import expression_dtype
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.elementwise import at_least, at_most, select
from whet.backends.tvm.lowering.half import narrowed, widened
from whet.ir.graph import Operation
from whet.ir.ops.contraction import spatial_dims
from whet.ir.types import DType

_CUBIC = -0.75
"""The free parameter of cubic convolution (Keys 1981), as torch has it."""

Tap = tuple[Any, Any]
"""Position (int64) of one element along one dimension, and its weight (None: 1)."""


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


def _taps(mode: str, coordinates: str, index: Any, step: Any, size: Any) -> list[Tap]:
    """Elements that one output needs along one dimension."""
    working = expression_dtype(step)
    position = index.astype(working)
    if mode == "nearest":
        moved = position + tirx.const(0.5, working) if coordinates == "half_pixel" else position
        return [(tirx.min(tirx.floor(moved * step).astype("int64"), size - 1), None)]
    half = tirx.const(0.5, working)
    source = position * step if coordinates == "align_corners" else step * (position + half) - half
    if mode == "linear":
        return _linear_taps(source, size)
    return _cubic_taps(source, lambda place: (tirx.max(tirx.min(place, size - 1), 0), None))


def _linear_taps(source: Any, size: Any) -> list[Tap]:
    working = expression_dtype(source)
    source = at_least(source, tirx.const(0, working))
    first = tirx.min(tirx.floor(source).astype("int64"), size - 1)
    second = tirx.min(first + 1, size - 1)
    part = at_most(at_least(source - first.astype(working), tirx.const(0, working)), tirx.const(1, working))
    return [(first, tirx.const(1, working) - part), (second, part)]


def _cubic_taps(source: Any, place: Callable[[Any], tuple[Any, Any]]) -> list[Tap]:
    """Four taps around the position; `place` gives where each is read, and whether it is (None: always)."""
    working = expression_dtype(source)
    whole = tirx.floor(source)
    part, first = source - whole, whole.astype("int64")
    taps: list[Tap] = []
    for offset in range(-1, 3):
        distance = part - tirx.const(offset, working)
        weight = (_inner if offset in (0, 1) else _outer)(tirx.abs(distance))
        position, inside = place(first + offset)
        if inside is not None:
            weight = tirx.Select(inside, weight, tirx.const(0, working))
        taps.append((position, weight))
    return taps


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
    steps = [_step(c, operation, i, shape[dim], working) for i, dim in enumerate(dims)]

    def element(*index: Any) -> Any:
        taps = [
            _taps(attributes["mode"], attributes["coordinates"], index[dim], step, c.dim(shape[dim]))
            for dim, step in zip(dims, steps, strict=True)
        ]
        return _combined(x, index, dims, taps, dtype)

    return te.compute(c.dims(operation.result.type.shape), element, name="resize")


def _combined(
    x: te.Tensor,
    index: Sequence[Any],
    dims: Sequence[int],
    taps: Sequence[Sequence[Tap]],
    dtype: DType,
) -> Any:
    """Σ over all combinations of taps of the element times its weights; the innermost dimension is summed first."""

    def along(i: int, place: list[Any]) -> Any:
        if i == len(dims):
            return widened(x(*place))
        terms = []
        for position, weight in taps[i]:
            item = along(i + 1, [*place[: dims[i]], position, *place[dims[i] + 1 :]])
            terms.append(item if weight is None else item.astype(expression_dtype(weight)) * weight)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    total = along(0, list(index))
    if not dtype.is_float and expression_dtype(total) != tvm_dtype(dtype):
        low, high = (tirx.const(float(bound), expression_dtype(total)) for bound in dtype.integer_range)
        return at_most(at_least(tirx.nearbyint(total), low), high).astype(tvm_dtype(dtype))
    return narrowed(total, tvm_dtype(dtype))


def _grid_sample(c: LoweringContext, operation: Operation) -> te.Tensor:
    attributes = operation.attributes
    value = operation.operand(0)
    x, grid = c.tensor(value), c.tensor(operation.operand(1))
    shape, dtype = value.type.shape, value.type.dtype
    spatial = len(shape) - 2
    sizes = [c.dim(shape[2 + i]) for i in range(spatial)]

    def element(*index: Any) -> Any:
        batch, positions = index[0], index[2:]
        taps = []
        for i in range(spatial):
            # the grid has the last spatial dimension first
            coordinate = widened(grid(batch, *positions, spatial - 1 - i))
            taps.append(_grid_taps(attributes, coordinate, sizes[i]))
        return _combined(x, [batch, index[1], *[0] * spatial], range(2, 2 + spatial), taps, dtype)

    return te.compute(c.dims(operation.result.type.shape), element, name="grid_sample")


def _grid_taps(attributes: dict[str, Any], coordinate: Any, size: Any) -> list[Tap]:
    working = expression_dtype(coordinate)
    one, half = tirx.const(1, working), tirx.const(0.5, working)
    extent = tirx.const(float(size), working) if isinstance(size, int) else size.astype(working)
    if attributes["align_corners"]:
        source = (coordinate + one) * half * (extent - one)
    else:
        source = ((coordinate + one) * extent - one) * half
    border, mode = attributes["border"], attributes["mode"]

    def folded(position: Any) -> Any:
        return _within(position, extent, border, attributes["align_corners"])

    def place(tap: Any) -> tuple[Any, Any]:
        """Where a tap at a whole position is read, and whether it counts."""
        if border != "zeros":
            tap = folded(tap.astype(working)).astype("int64")
        held = tirx.max(tirx.min(tap, size - 1), 0)
        return held, tirx.all(tap >= 0, tap < size) if border == "zeros" else None

    if mode == "cubic":
        return _cubic_taps(_finite(source), place)
    source = _finite(source if border == "zeros" else folded(source))
    if mode == "nearest":
        position, inside = place(tirx.nearbyint(source).astype("int64"))
        weight = None if inside is None else tirx.Select(inside, one, tirx.const(0, working))
        return [(position, weight)]
    whole = tirx.floor(source)
    part, first = source - whole, whole.astype("int64")
    taps: list[Tap] = []
    for tap, weight in ((first, one - part), (first + 1, part)):
        held = tirx.max(tirx.min(tap, size - 1), 0)
        inside = tirx.all(tap >= 0, tap < size)
        taps.append((held, tirx.Select(inside, weight, tirx.const(0, working))))
    return taps


def _finite(position: Any) -> Any:
    """A position that a conversion to integers can hold; what is not a number lies before the first element."""
    working = expression_dtype(position)
    low, high = tirx.const(-(2.0**30), working), tirx.const(2.0**30, working)
    return at_most(at_least(select(tirx.isnan(position), low, position), low), high)


def _within(position: Any, extent: Any, border: str, align_corners: bool) -> Any:
    """The position brought back to 0 ... extent - 1 by clamping, or by mirroring and clamping."""
    working = expression_dtype(position)
    zero, one, half = (tirx.const(number, working) for number in (0, 1, 0.5))
    if border == "reflection":
        edge, span = (zero, extent - one) if align_corners else (-half, extent)
        moved = tirx.abs(position - edge)
        safe = at_least(span, one)
        turns = tirx.floor(moved / safe)
        rest = moved - turns * safe
        even = turns - tirx.const(2, working) * tirx.floor(turns * half) == zero
        mirrored = select(even, rest + edge, span - rest + edge)
        position = select(span < one, zero, mirrored)
    return at_most(at_least(position, zero), extent - one)


LOWERINGS: dict[str, Callable[..., Any]] = {"resize": _resize, "grid_sample": _grid_sample}
