"""Reading and writing at indices given as a tensor.

No access leaves its tensor: reads at an index outside of it are moved to its border, such writes are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from whet.backends.tvm.kernels.math import expression_dtype as dtype_of
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.elementwise import maximum, minimum
from whet.backends.tvm.lowering.half import narrowed, widened
from whet.backends.tvm.lowering.loops import inserted, load, loops, nest, parallel_nest, store
from whet.backends.tvm.lowering.stored import readable
from whet.ir.graph import Operation


def _held(index: Any, size: Any) -> Any:
    """An index inside of 0..size-1."""
    return tirx.max(tirx.min(index.astype("int64"), size - 1), tirx.IntImm("int64", 0))


def _take(c: LoweringContext, operation: Operation) -> te.Tensor:
    x, indices, axis = readable(c, operation.operand(0)), c.tensor(operation.operand(1)), operation.attributes["axis"]
    count = operation.operand(1).type.rank
    size = c.dim(operation.operand(0).type.shape[axis])

    def element(*index: Any) -> Any:
        picked = _held(indices(*index[axis : axis + count]), size)
        return x(*index[:axis], picked, *index[axis + count :])

    return te.compute(c.dims(operation.result.type.shape), element, name="take")


def _gather(c: LoweringContext, operation: Operation) -> te.Tensor:
    x, indices, axis = c.tensor(operation.operand(0)), c.tensor(operation.operand(1)), operation.attributes["axis"]
    size = c.dim(operation.operand(0).type.shape[axis])

    def element(*index: Any) -> Any:
        return x(*(_held(indices(*index), size) if dim == axis else i for dim, i in enumerate(index)))

    return te.compute(c.dims(operation.result.type.shape), element, name="gather")


def _scatter(c: LoweringContext, operation: Operation) -> te.Tensor:
    """One line along the axis after the other: updates of one element meet in one line only."""
    axis = operation.attributes["axis"]
    shape = c.dims(operation.operand(1).type.shape)
    lines = shape[:axis] + shape[axis + 1 :]

    def body(ins: Any, outs: Any) -> None:
        (_, indices, updates), (target,) = ins, outs
        _copy(ins[0], target, c.dims(operation.result.type.shape))
        with parallel_nest(lines, shape[axis]) as line, nest([shape[axis]]) as (place,):
            here = inserted(line, axis, place)
            _update(c, operation, target, line, load(indices, here), load(updates, here))

    return _written(c, operation, body)


def _scatter_slices(c: LoweringContext, operation: Operation) -> te.Tensor:
    axis = operation.attributes["axis"]
    shape = c.dims(operation.operand(2).type.shape)

    def body(ins: Any, outs: Any) -> None:
        (_, indices, updates), (target,) = ins, outs
        _copy(ins[0], target, c.dims(operation.result.type.shape))
        with parallel_nest(shape[:axis], shape[axis]) as outer, nest(shape[axis:]) as (place, *inner):
            update = load(updates, [*outer, place, *inner])
            _update(c, operation, target, [*outer, *inner], load(indices, [place]), update)

    return _written(c, operation, body)


def _copy(source: Any, target: Any, shape: Sequence[Any]) -> None:
    with parallel_nest(shape[:-1], shape[-1]) as outer, nest(shape[-1:]) as inner:
        store(target, [*outer, *inner], load(source, [*outer, *inner]))


def _update(c: LoweringContext, operation: Operation, target: Any, line: list[Any], index: Any, update: Any) -> None:
    """Combine the element at `index` of a line with an update, if it is in the tensor."""
    axis, reduction = operation.attributes["axis"], operation.attributes["reduction"]
    size = c.dim(operation.result.type.shape[axis])
    wide = index.astype("int64")
    place = inserted(line, axis, _held(index, size))
    combine = (_BOOL_REDUCTIONS if dtype_of(update) == "bool" else _REDUCTIONS)[reduction]
    with T.If(tirx.all(wide >= 0, wide < size)), T.Then():
        combined = combine(widened(load(target, place)), widened(update))
        store(target, place, narrowed(combined, dtype_of(update)))


def _written(c: LoweringContext, operation: Operation, body: Callable[[Any, Any], None]) -> te.Tensor:
    inputs = [c.tensor(operation.operand(slot)) for slot in range(3)]
    type = operation.result.type
    (result,) = loops([c.dims(type.shape)], [tvm_dtype(type.dtype)], inputs, body, operation.name)
    return result


_REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "replace": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "amin": minimum,
    "amax": maximum,
}
_BOOL_REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "replace": lambda old, new: new,
    "add": tirx.Or,
    "mul": tirx.And,
    "amin": tirx.And,
    "amax": tirx.Or,
}

LOWERINGS: dict[str, Callable[..., Any]] = {
    "take": _take,
    "gather": _gather,
    "scatter": _scatter,
    "scatter_slices": _scatter_slices,
}
