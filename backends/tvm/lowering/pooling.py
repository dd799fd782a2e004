"""Pooling windows, in either layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from whet.backends.tvm.kernels.math import expression_dtype
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.half import narrowed, widened
from whet.backends.tvm.lowering.reduction import accumulator_dtype, first_extreme, lowest, nan_aware
from whet.ir.graph import Operation
from whet.ir.ops.contraction import spatial_dims

_MAX = nan_aware(lambda x, y: x > y, lowest, "max_pool")
_FIRST_MAXIMUM = first_extreme(lambda x, y: x > y, lowest, "first_maximum")


def _window(c: LoweringContext, operation: Operation) -> tuple[list[Any], Callable[..., tuple[list[Any], list[Any]]]]:
    """Reduction axes of a pooling window, and (source index, conditions to be inside) of a result index."""
    attributes = operation.attributes
    shape = operation.operand(0).type.shape
    dims = list(spatial_dims(len(shape), attributes["layout"]))
    dilation = attributes.get("dilation", (1,) * len(dims))
    axes = [te.reduce_axis((0, size), name=f"k{i}") for i, size in enumerate(attributes["kernel"])]

    def place(index: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        source, inside = list(index), []
        for i, dim in enumerate(dims):
            low, high = attributes["padding"][i]
            position = index[dim] * attributes["stride"][i] + axes[i].var * dilation[i] - low
            source[dim] = position
            if low:
                inside.append(position >= 0)
            if low or high or attributes.get("ceil", False):
                inside.append(position < c.dim(shape[dim]))
        return source, inside

    return axes, place


def _max_pool(c: LoweringContext, operation: Operation) -> te.Tensor:
    x = c.tensor(operation.operand(0))
    axes, place = _window(c, operation)
    dtype = operation.result.type.dtype
    working = accumulator_dtype(dtype)

    def element(*index: Any) -> Any:
        source, inside = place(index)
        value = widened(x(*source))
        return _MAX(tirx.if_then_else(tirx.all(*inside), value, lowest(working)) if inside else value, axis=axes)

    largest = te.compute(c.dims(operation.result.type.shape), element, name="max_pool")
    if working == tvm_dtype(dtype):
        return largest
    return te.compute(largest.shape, lambda *index: narrowed(largest(*index), tvm_dtype(dtype)), name="max_pool_end")


def _avg_pool(c: LoweringContext, operation: Operation) -> te.Tensor:
    attributes = operation.attributes
    dtype = operation.result.type.dtype
    working = accumulator_dtype(dtype)
    x = c.tensor(operation.operand(0))
    axes, place = _window(c, operation)
    shape = operation.operand(0).type.shape
    dims = list(spatial_dims(len(shape), attributes["layout"]))

    def element(*index: Any) -> Any:
        source, inside = place(index)
        value = widened(x(*source))
        zero = tirx.const(0.0, working)
        return te.sum(tirx.if_then_else(tirx.all(*inside), value, zero) if inside else value, axis=axes)

    total = te.compute(c.dims(operation.result.type.shape), element, name="avg_pool")

    def count(index: Sequence[Any]) -> Any:
        """Positions that count: those inside of the tensor, and of the declared padding where it counts."""
        number: Any = tirx.IntImm("int64", 1)
        for i, dim in enumerate(dims):
            low, high = attributes["padding"][i]
            first = index[dim] * attributes["stride"][i] - low
            last = first + attributes["kernel"][i]
            begin, end = (-low, c.dim(shape[dim]) + high) if attributes["count_padding"] else (0, c.dim(shape[dim]))
            number = number * tirx.max(tirx.min(last, end) - tirx.max(first, begin), 0)
        return tirx.max(number, 1)

    whole = math.prod(attributes["kernel"])
    plain = not attributes["ceil"] and (attributes["count_padding"] or not any(map(any, attributes["padding"])))
    divisor = attributes["divisor"] or (whole if plain else None)

    def finish(*index: Any) -> Any:
        number = tirx.const(float(divisor), working) if divisor else count(index).astype(working)
        return narrowed(total(*index) / number, tvm_dtype(dtype))

    return te.compute(total.shape, finish, name="avg_pool_end")


def _sum_pool_integer(c: LoweringContext, operation: Operation) -> te.Tensor:
    """i32 sums of codes less their zero point; what lies outside adds nothing (numerics: Q9, Q11)."""
    x = c.tensor(operation.operand(0))
    axes, place = _window(c, operation)
    zero_point = tirx.const(operation.attributes["x_zero_point"], "int32")

    def element(*index: Any) -> Any:
        source, inside = place(index)
        value = x(*source).astype("int32") - zero_point
        return te.sum(tirx.if_then_else(tirx.all(*inside), value, 0) if inside else value, axis=axes)

    return te.compute(c.dims(operation.result.type.shape), element, name=operation.name)


def _adaptive_window(
    c: LoweringContext, operation: Operation
) -> tuple[list[Any], Callable[..., tuple[list[Any], list[Any]]], Callable[..., tuple[Any, Any]]]:
    """As `_window`, for windows [⌊i·size/out⌋, ⌈(i+1)·size/out⌉); and (start, stop) of one along one dimension."""
    shape, size = operation.operand(0).type.shape, operation.attributes["size"]
    dims = list(spatial_dims(len(shape), operation.attributes["layout"]))
    counts = [c.dim(count) for count in size]
    widest = [_widest(c, shape[dim], count) for dim, count in zip(dims, size, strict=True)]
    axes = [te.reduce_axis((0, width), name=f"k{i}") for i, width in enumerate(widest)]

    def bounds(index: Sequence[Any], i: int) -> tuple[Any, Any]:
        full, position = c.dim(shape[dims[i]]), index[dims[i]]
        return (
            tirx.floordiv(position * full, counts[i]),
            tirx.floordiv((position + 1) * full + counts[i] - 1, counts[i]),
        )

    def place(index: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        source, inside = list(index), []
        for i, dim in enumerate(dims):
            start, stop = bounds(index, i)
            source[dim] = start + axes[i].var
            inside.append(source[dim] < stop)
        return source, inside

    return axes, place, bounds


def _adaptive(maximum: bool) -> Callable[..., te.Tensor]:
    def lower(c: LoweringContext, operation: Operation) -> te.Tensor:
        x = c.tensor(operation.operand(0))
        dtype = operation.result.type.dtype
        working = accumulator_dtype(dtype)
        axes, place, bounds = _adaptive_window(c, operation)
        outside = lowest(working) if maximum else tirx.const(0.0, working)

        def element(*index: Any) -> Any:
            source, inside = place(index)
            value = tirx.if_then_else(tirx.all(*inside), widened(x(*source)), outside)
            return (_MAX if maximum else te.sum)(value, axis=axes)

        reduced = te.compute(c.dims(operation.result.type.shape), element, name=operation.name)

        def finish(*index: Any) -> Any:
            value = reduced(*index)
            for i in range(0 if maximum else len(axes)):
                start, stop = bounds(index, i)
                value = value / (stop - start).astype(working)
            return narrowed(value, tvm_dtype(dtype))

        return te.compute(reduced.shape, finish, name=f"{operation.name}_end")

    return lower


def _positioned(x: Any, source: Sequence[Any], inside: Sequence[Any], sizes: Sequence[Any], dims: Sequence[int]) -> Any:
    """(row-major index among the spatial positions, element) of one tap; outside, what every element comes before."""
    position: Any = tirx.IntImm("int64", 0)
    for dim, size in zip(dims, sizes, strict=True):
        position = position * size + source[dim]
    value = widened(x)
    if not inside:
        return position, value
    within = tirx.all(*inside)
    last = tirx.const(2**62, "int64")
    return tirx.if_then_else(within, position, last), tirx.if_then_else(within, value, lowest(expression_dtype(value)))


def _with_indices(
    c: LoweringContext, operation: Operation, axes: list[Any], tap: Callable[[Sequence[Any]], Any]
) -> tuple[te.Tensor, te.Tensor]:
    """The largest element of each window and where it is; the first of equals."""
    type = operation.results[0].type
    shape = c.dims(type.shape)
    indices, values = te.compute(shape, lambda *index: _FIRST_MAXIMUM(tap(index), axis=axes), name=operation.name)
    dtype = tvm_dtype(type.dtype)
    return (
        te.compute(shape, lambda *index: narrowed(values(*index), dtype), name=f"{operation.name}_values"),
        te.compute(shape, lambda *index: indices(*index), name=f"{operation.name}_indices"),
    )


def _max_pool_with_indices(c: LoweringContext, operation: Operation) -> tuple[te.Tensor, te.Tensor]:
    x, shape = c.tensor(operation.operand(0)), operation.operand(0).type.shape
    axes, place = _window(c, operation)
    dims = list(spatial_dims(len(shape), operation.attributes["layout"]))
    sizes = [c.dim(shape[dim]) for dim in dims]

    def tap(index: Sequence[Any]) -> Any:
        source, inside = place(index)
        return _positioned(x(*source), source, inside, sizes, dims)

    return _with_indices(c, operation, axes, tap)


def _adaptive_max_pool_with_indices(c: LoweringContext, operation: Operation) -> tuple[te.Tensor, te.Tensor]:
    x, shape = c.tensor(operation.operand(0)), operation.operand(0).type.shape
    axes, place, _ = _adaptive_window(c, operation)
    dims = list(spatial_dims(len(shape), operation.attributes["layout"]))
    sizes = [c.dim(shape[dim]) for dim in dims]

    def tap(index: Sequence[Any]) -> Any:
        source, inside = place(index)
        return _positioned(x(*source), source, inside, sizes, dims)

    return _with_indices(c, operation, axes, tap)


def _widest(c: LoweringContext, full: Any, count: Any) -> Any:
    """An upper bound of the window's width."""
    if isinstance(full, int) and isinstance(count, int):
        return max(-(-(i + 1) * full // count) - i * full // count for i in range(count))
    return tirx.floordiv(c.dim(full) + c.dim(count) - 1, c.dim(count)) + 1


LOWERINGS: dict[str, Callable[..., Any]] = {
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "sum_pool_integer": _sum_pool_integer,
    "adaptive_avg_pool": _adaptive(maximum=False),
    "adaptive_max_pool": _adaptive(maximum=True),
    "max_pool_with_indices": _max_pool_with_indices,
    "adaptive_max_pool_with_indices": _adaptive_max_pool_with_indices,
}
