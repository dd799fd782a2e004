"""Pooling windows, in either layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.reduction import accumulator_dtype, lowest, nan_aware
from whet.ir.graph import Operation
from whet.ir.ops.contraction import spatial_dims

_MAX = nan_aware(lambda x, y: x > y, lowest, "max_pool")


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
            if low or high or attributes["ceil"]:
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
        value = x(*source).astype(working)
        return _MAX(tirx.if_then_else(tirx.all(*inside), value, lowest(working)) if inside else value, axis=axes)

    largest = te.compute(c.dims(operation.result.type.shape), element, name="max_pool")
    if working == tvm_dtype(dtype):
        return largest
    return te.compute(largest.shape, lambda *index: largest(*index).astype(tvm_dtype(dtype)), name="max_pool_end")


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
        value = x(*source).astype(working)
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
            number = number * (tirx.min(last, end) - tirx.max(first, begin))
        return number

    whole = math.prod(attributes["kernel"])
    plain = not attributes["ceil"] and (attributes["count_padding"] or not any(map(any, attributes["padding"])))
    divisor = attributes["divisor"] or (whole if plain else None)

    def finish(*index: Any) -> Any:
        number = tirx.const(float(divisor), working) if divisor else count(index).astype(working)
        return (total(*index) / number).astype(tvm_dtype(dtype))

    return te.compute(total.shape, finish, name="avg_pool_end")


def _adaptive(maximum: bool) -> Callable[..., te.Tensor]:
    def lower(c: LoweringContext, operation: Operation) -> te.Tensor:
        x, shape = c.tensor(operation.operand(0)), operation.operand(0).type.shape
        layout, size = operation.attributes["layout"], operation.attributes["size"]
        dims = list(spatial_dims(len(shape), layout))
        dtype = operation.result.type.dtype
        working = accumulator_dtype(dtype)
        widest = [_widest(c, shape[dim], count) for dim, count in zip(dims, size, strict=True)]
        axes = [te.reduce_axis((0, width), name=f"k{i}") for i, width in enumerate(widest)]
        outside = lowest(working) if maximum else tirx.const(0.0, working)

        def bounds(index: Sequence[Any], i: int) -> tuple[Any, Any]:
            full = c.dim(shape[dims[i]])
            position = index[dims[i]]
            return tirx.indexdiv(position * full, size[i]), tirx.indexdiv((position + 1) * full + size[i] - 1, size[i])

        def element(*index: Any) -> Any:
            source, inside = list(index), []
            for i, dim in enumerate(dims):
                start, stop = bounds(index, i)
                source[dim] = start + axes[i].var
                inside.append(source[dim] < stop)
            value = tirx.if_then_else(tirx.all(*inside), x(*source).astype(working), outside)
            return (_MAX if maximum else te.sum)(value, axis=axes)

        reduced = te.compute(c.dims(operation.result.type.shape), element, name=operation.name)

        def finish(*index: Any) -> Any:
            value = reduced(*index)
            for i in range(0 if maximum else len(dims)):
                start, stop = bounds(index, i)
                value = value / (stop - start).astype(working)
            return value.astype(tvm_dtype(dtype))

        return te.compute(reduced.shape, finish, name=f"{operation.name}_end")

    return lower


def _widest(c: LoweringContext, full: Any, count: int) -> Any:
    """An upper bound of the window's width."""
    if not isinstance(full, int):
        return tirx.indexdiv(c.dim(full) + count - 1, count) + 1
    return max(-(-(i + 1) * full // count) - i * full // count for i in range(count))


LOWERINGS: dict[str, Callable[..., Any]] = {
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive(maximum=False),
    "adaptive_max_pool": _adaptive(maximum=True),
}
