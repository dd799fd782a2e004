"""What converters of several families share: ranges, index arithmetic, and the error for one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from whet.errors import UnsupportedOpError
from whet.frontend.context import Context
from whet.ir.dimensions import Dim
from whet.ir.graph import Value
from whet.ir.types import DType


def unsupported(c: Context, reason: str) -> UnsupportedOpError:
    """The error for one call that has no meaning in a graph, with its source line and the reason."""
    return UnsupportedOpError([(f"{c.target} ({reason})", str(c.builder.location))])


def static(c: Context, size: Dim, what: str) -> int:
    """A size that must be known at compile time. Raises UnsupportedOpError where it is symbolic."""
    if not isinstance(size, int):
        raise unsupported(c, f"{what} {size} must be static")
    return size


def iota(c: Context, length: Dim, dtype: DType = DType.I64) -> Value:
    """0, 1, ..., length - 1."""
    result: Value = c.iota(length=length, dtype=dtype)
    return result


def aligned(c: Context, x: Value, dim: int, rank: int) -> Value:
    """A vector as dimension `dim` of a tensor of `rank` dimensions, the others 1."""
    shape: list[Dim] = [1] * rank
    shape[dim] = x.type.shape[0]
    return c.reshape_to(x, shape)


def index_constant(c: Context, index: torch.Tensor) -> Value:
    """Indices that are known at compile time."""
    return c.builder.constant(index.to(torch.int64))


def wrapped(c: Context, index: Value, size: Dim) -> Value:
    """The index with `size` added to its negative elements; unchanged where it cannot have any."""
    if index.type.dtype not in (DType.I64, DType.I32):
        index = c.cast(index, DType.I64)
    if _is_natural(index):
        return index
    if index.constant is not None and isinstance(size, int):
        return index_constant(c, torch.where(index.constant < 0, index.constant + size, index.constant))
    moved = c.add(index, c.operand(size, index.type.dtype))
    result: Value = c.where(c.lt(index, 0), moved, index)
    return result


_KEEPS_SIGN = frozenset({"reshape", "transpose", "broadcast_to", "slice", "flip", "concat", "pad", "take", "gather"})
_NATURAL_RESULTS = frozenset({"argmax", "argmin"})


def _is_natural(index: Value) -> bool:
    """Whether no element can be negative, as far as the operation that made it tells."""
    if index.constant is not None:
        return bool((index.constant >= 0).all())
    operation = index.producer
    if operation is None:
        return False
    if operation.name in _NATURAL_RESULTS:
        return True
    if operation.name in ("sort", "topk"):
        return index is operation.results[1]
    if operation.name == "iota":
        start, step = operation.attributes["start"], operation.attributes["step"]
        return all(isinstance(item, int) and item >= 0 for item in (start, step))
    if operation.name in _KEEPS_SIGN:
        if operation.name == "pad" and operation.attributes["value"] < 0:
            return False
        indices = {"take", "gather"} & {operation.name}
        operands = operation.operands[:1] if indices else operation.operands
        return all(operand is not None and _is_natural(operand) for operand in operands)
    return False


def strides(shape: Sequence[Dim]) -> list[Dim]:
    """Elements between neighbours in each dimension of a row-major tensor."""
    steps: list[Dim] = []
    inner: Dim = 1
    for size in reversed(shape):
        steps.append(inner)
        inner = inner * size
    return steps[::-1]
