"""Operations that move elements: the result reads its operand at another index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.elementwise import broadcast_index, select
from whet.backends.tvm.lowering.loops import ravel, unravel
from whet.ir.dimensions import Dim
from whet.ir.graph import Operation


def _moved(
    c: LoweringContext, operation: Operation, source_index: Callable[[Sequence[Any]], Sequence[Any]]
) -> te.Tensor:
    x = c.tensor(operation.operand(0))
    shape = c.dims(operation.result.type.shape)
    return te.compute(shape, lambda *index: x(*source_index(index)), name=operation.name)


def _reshape(c: LoweringContext, operation: Operation) -> te.Tensor:
    """Inside of a kernel: the row-major offset, taken apart again."""
    source = c.dims(operation.operand(0).type.shape)
    target = c.dims(operation.result.type.shape)
    return _moved(c, operation, lambda index: unravel(ravel(index, target), source))


def _transpose(c: LoweringContext, operation: Operation) -> te.Tensor:
    permutation = operation.attributes["permutation"]

    def source_index(index: Sequence[Any]) -> Sequence[Any]:
        moved = [index[0]] * len(permutation) if permutation else []
        for new, old in enumerate(permutation):
            moved[old] = index[new]
        return moved

    return _moved(c, operation, source_index)


def _broadcast_to(c: LoweringContext, operation: Operation) -> te.Tensor:
    value, shape = operation.operand(0), operation.result.type.shape
    return _moved(c, operation, lambda index: broadcast_index(value, shape, index))


def _slice(c: LoweringContext, operation: Operation) -> te.Tensor:
    starts, steps = c.dims(operation.attributes["starts"]), operation.attributes["steps"]
    return _moved(
        c, operation, lambda index: [start + i * step for i, start, step in zip(index, starts, steps, strict=True)]
    )


def _flip(c: LoweringContext, operation: Operation) -> te.Tensor:
    dims, shape = operation.attributes["dims"], c.dims(operation.result.type.shape)
    return _moved(c, operation, lambda index: [shape[d] - 1 - i if d in dims else i for d, i in enumerate(index)])


def _concat(c: LoweringContext, operation: Operation) -> te.Tensor:
    """The last operand whose start is not beyond the position."""
    axis = operation.attributes["axis"]
    operands = [operation.operand(slot) for slot in range(len(operation.operands))]
    tensors = [c.tensor(value) for value in operands]
    starts: list[Any] = [tirx.IntImm("int64", 0)]
    total: Dim = 0
    for value in operands:
        total = total + value.type.shape[axis]
        starts.append(c.dim(total))

    def element(*index: Any) -> Any:
        def read(slot: int) -> Any:
            return tensors[slot](*(i - starts[slot] if d == axis else i for d, i in enumerate(index)))

        result = read(len(tensors) - 1)
        for slot in reversed(range(len(tensors) - 1)):
            result = tirx.if_then_else(index[axis] < starts[slot + 1], read(slot), result)
        return result

    return te.compute(c.dims(operation.result.type.shape), element, name="concat")


def _pad(c: LoweringContext, operation: Operation) -> te.Tensor:
    mode, padding = operation.attributes["mode"], operation.attributes["padding"]
    x = c.tensor(operation.operand(0))
    sizes = c.dims(operation.operand(0).type.shape)
    dtype = operation.result.type.dtype
    fill = tirx.const(
        (dtype.torch.is_floating_point and float(operation.attributes["value"])) or int(operation.attributes["value"]),
        tvm_dtype(dtype),
    )

    def element(*index: Any) -> Any:
        inside, source = [], []
        for i, size, (low, high) in zip(index, sizes, padding, strict=True):
            position = i - c.dim(low)
            grows = low != 0 or high != 0
            if grows and mode == "constant":
                inside += [position >= 0, position < size]
            source.append(_BORDER[mode](position, size) if grows else i)
        value = x(*source)
        return tirx.if_then_else(tirx.all(*inside), value, fill) if inside else value

    return te.compute(c.dims(operation.result.type.shape), element, name="pad")


def _reflect(position: Any, size: Any) -> Any:
    folded = tirx.abs(position)
    return select(folded >= size, 2 * size - 2 - folded, folded)


_BORDER: dict[str, Callable[[Any, Any], Any]] = {
    "constant": lambda position, size: position,
    "reflect": _reflect,
    "replicate": lambda position, size: tirx.max(tirx.min(position, size - 1), 0),
    "circular": lambda position, size: tirx.floormod(position, size),
}


def _triangle(c: LoweringContext, operation: Operation) -> te.Tensor:
    x, lower, diagonal = c.tensor(operation.operand(0)), operation.attributes["lower"], operation.attributes["diagonal"]
    zero = tirx.const(0, tvm_dtype(operation.result.type.dtype))

    def element(*index: Any) -> Any:
        row, column = index[-2], index[-1]
        kept = column <= row + diagonal if lower else column >= row + diagonal
        return select(kept, x(*index), zero)

    return te.compute(c.dims(operation.result.type.shape), element, name="triangle")


LOWERINGS: dict[str, Callable[..., Any]] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast_to": _broadcast_to,
    "slice": _slice,
    "flip": _flip,
    "concat": _concat,
    "pad": _pad,
    "triangle": _triangle,
}
