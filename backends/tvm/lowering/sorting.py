"""Sorting along one dimension: a stable merge sort of positions, and insertion into a short list for the first few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from whet.backends.tvm.kernels.math import expression_dtype
from whet.backends.tvm.lowering.context import LoweringContext
from whet.backends.tvm.lowering.half import widened
from whet.backends.tvm.lowering.loops import (
    Variable,
    extent_of,
    inserted,
    load,
    loops,
    nest,
    parallel_nest,
    store,
)
from whet.ir.graph import Operation

# The first k of a line are kept in order by insertion up to this k: about k · ln n insertions are needed.
_SHORT_LIST = 64
_ZERO = tirx.IntImm("int64", 0)


def _before(x: Any, y: Any, descending: bool) -> Any:
    """Whether x comes strictly before y; NaN is the greatest number."""
    x, y = widened(x), widened(y)
    if expression_dtype(x) == "bool":
        x, y = x.astype("int8"), y.astype("int8")
    less = x > y if descending else x < y
    if "float" not in expression_dtype(x):
        return less
    x_nan, y_nan = tirx.isnan(x), tirx.isnan(y)
    if descending:
        return tirx.all(tirx.Not(y_nan), tirx.any(x_nan, less))
    return tirx.all(tirx.Not(x_nan), tirx.any(y_nan, less))


def _sort(c: LoweringContext, operation: Operation) -> tuple[te.Tensor, te.Tensor]:
    axis, descending = operation.attributes["axis"], operation.attributes["descending"]
    x, shape = c.tensor(operation.operand(0)), c.dims(operation.operand(0).type.shape)
    return _ordered(x, shape, axis, descending, shape[axis])


def _ordered(x: te.Tensor, shape: list[Any], axis: int, descending: bool, kept: Any) -> tuple[te.Tensor, te.Tensor]:
    """The first `kept` elements of every sorted line, and where they were."""
    result = [*shape[:axis], kept, *shape[axis + 1 :]]
    lines, size = shape[:axis] + shape[axis + 1 :], shape[axis]

    def body(ins: Any, outs: Any) -> None:
        (source,), (values, indices, order, merged) = ins, outs
        with parallel_nest(lines, size * 16) as line:
            _merge_sort(source, order, merged, line, axis, size, descending)
            with nest([kept]) as (place,):
                position = load(order, [*line, place])
                store(indices, inserted(line, axis, place), position)
                store(values, inserted(line, axis, place), load(source, inserted(line, axis, position)))

    values, indices, _, _ = loops(
        [result, result, [*lines, size], [*lines, size]],
        [x.dtype, "int64", "int64", "int64"],
        [x],
        body,
        "sort",
    )
    return values, indices


def _merge_sort(source: Any, order: Any, merged: Any, line: list[Any], axis: int, size: Any, descending: bool) -> None:
    """Bottom-up: runs of 1, 2, 4, ... positions are merged pairwise, until one is left."""

    def key(position: Any) -> Any:
        return load(source, inserted(line, axis, position))

    with nest([size]) as (place,):
        store(order, [*line, place], place)
    width = Variable(tirx.IntImm("int64", 1), "int64")
    with T.While(width.value < size):
        with nest([tirx.indexdiv(size + 2 * width.value - 1, 2 * width.value)]) as (pair,):
            start = 2 * width.value * pair
            middle, stop = (tirx.min(start + count * width.value, size) for count in (1, 2))
            left, right = Variable(start, "int64"), Variable(middle, "int64")
            with nest([stop - start]) as (place,):
                first = load(order, [*line, tirx.min(left.value, size - 1)])
                second = load(order, [*line, tirx.min(right.value, size - 1)])
                behind = tirx.any(
                    left.value >= middle,
                    tirx.all(right.value < stop, _before(key(second), key(first), descending)),
                )
                with T.If(behind):
                    with T.Then():
                        store(merged, [*line, start + place], second)
                        right.set(right.value + 1)
                    with T.Else():
                        store(merged, [*line, start + place], first)
                        left.set(left.value + 1)
        with nest([size]) as (place,):
            store(order, [*line, place], load(merged, [*line, place]))
        width.set(width.value * 2)


def _topk(c: LoweringContext, operation: Operation) -> tuple[te.Tensor, te.Tensor]:
    axis, largest = operation.attributes["axis"], operation.attributes["largest"]
    x, shape = c.tensor(operation.operand(0)), c.dims(operation.operand(0).type.shape)
    count = c.dim(operation.attributes["k"])
    known = extent_of(count)
    if known is None or known > _SHORT_LIST:
        return _ordered(x, shape, axis, largest, count)
    return _first(x, shape, axis, largest, known)


def _first(x: te.Tensor, shape: list[Any], axis: int, descending: bool, count: int) -> tuple[te.Tensor, te.Tensor]:
    """Every element that comes before the last of the list moves up to its place in it."""
    result = [*shape[:axis], count, *shape[axis + 1 :]]
    lines, size = shape[:axis] + shape[axis + 1 :], shape[axis]

    def body(ins: Any, outs: Any) -> None:
        (source,), (values, indices) = ins, outs

        def place(slot: Any) -> list[Any]:
            return inserted(line, axis, slot)

        with parallel_nest(lines, size * 4) as line, nest([size]) as (position,):
            item = load(source, place(position))
            filled = tirx.min(position, count)
            slot = Variable(filled, "int64")
            # a list that is not full takes every element; a full one what comes before its last
            last = load(values, place(tirx.max(filled - 1, 0)))
            with T.If(tirx.any(position < count, _before(item, last, descending))), T.Then():
                slot.set(tirx.min(filled, count - 1))
                above = load(values, place(tirx.max(slot.value - 1, 0)))
                with T.While(tirx.all(slot.value > 0, _before(item, above, descending))):
                    for buffer in (values, indices):
                        store(buffer, place(slot.value), load(buffer, place(slot.value - 1)))
                    slot.set(slot.value - 1)
                store(values, place(slot.value), item)
                store(indices, place(slot.value), position)

    values, indices = loops([result, result], [x.dtype, "int64"], [x], body, "topk")
    return values, indices


LOWERINGS: dict[str, Callable[..., Any]] = {"sort": _sort, "topk": _topk}
