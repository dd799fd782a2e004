"""Operations that read or write at indices given as a tensor: take, gather, scatter, scatter_slices.

Indices are integers in 0..size-1: whoever emits these operations adds the size to negative ones. The
reference refuses an index outside of that range; compiled code must not leave the tensor for one, but what
it reads or writes there is undefined.
"""

from __future__ import annotations

import torch
from torch import Tensor

from whet.ir.definition import Axis, Cost, OpDefinition, Tie, moved_bytes, require, require_same_dtype
from whet.ir.dimensions import same_dim
from whet.ir.graph import Operation
from whet.ir.types import DType, TensorType

REDUCTIONS = ("replace", "add", "mul", "amin", "amax")
_TORCH_REDUCTIONS = {"add": "sum", "mul": "prod", "amin": "amin", "amax": "amax"}


def _require_indices(indices: TensorType) -> None:
    require(indices.dtype in (DType.I64, DType.I32), f"indices must be i64 or i32, got {indices.dtype.value}")


def _require_axis(x: TensorType, axis: int) -> None:
    require(0 <= axis < x.rank, f"axis {axis} is outside of {x}")


def _require_reduction(reduction: str) -> None:
    require(reduction in REDUCTIONS, f"reduction must be one of {REDUCTIONS}, got {reduction!r}")


class Take(OpDefinition):
    """y[a..., i..., b...] = x[a..., indices[i...], b...]: whole slices of x.

    `axis` is the dimension that is indexed; the indices' dimensions stand in its place. An embedding is a
    take of rows (axis 0).
    """

    name = "take"

    def infer(self, x: TensorType, indices: TensorType, *, axis: int = 0) -> TensorType:
        _require_indices(indices)
        _require_axis(x, axis)
        return TensorType((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)

    def evaluate(self, x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
        picked = torch.index_select(x, axis, indices.reshape(-1))
        return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])

    def axes(self, operation: Operation) -> list[Tie]:
        axis, rank = operation.attributes["axis"], operation.operand(0).type.rank
        count = operation.operand(1).type.rank
        ties = [
            Tie(Axis(0, dim), Axis(-1, dim if dim < axis else dim + count - 1)) for dim in range(rank) if dim != axis
        ]
        return ties + [Tie(Axis(1, dim), Axis(-1, axis + dim)) for dim in range(count)]

    def cost(self, operation: Operation) -> Cost:
        return _touched(operation, 0)


class Gather(OpDefinition):
    """y[i, j, k] = x[i, indices[i, j, k], k] (for axis 1): one element of x for each index.

    x and indices have one rank; outside of `axis` the indices may be smaller than x.
    """

    name = "gather"

    def infer(self, x: TensorType, indices: TensorType, *, axis: int) -> TensorType:
        _require_indices(indices)
        _require_axis(x, axis)
        _require_within(indices, x, axis)
        return TensorType(indices.shape, x.dtype)

    def evaluate(self, x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
        return torch.gather(x, axis, indices.long())

    def axes(self, operation: Operation) -> list[Tie]:
        x, indices, axis = operation.operand(0).type, operation.operand(1).type, operation.attributes["axis"]
        ties = [Tie(Axis(1, dim), Axis(-1, dim)) for dim in range(indices.rank)]
        ties += [
            Tie(Axis(0, dim), Axis(-1, dim))
            for dim in range(x.rank)
            if dim != axis and same_dim(x.shape[dim], indices.shape[dim])
        ]
        return ties

    def cost(self, operation: Operation) -> Cost:
        return _touched(operation, 0)


class Scatter(OpDefinition):
    """x, with x[i, indices[i, j, k], k] (for axis 1) replaced by, or combined with, updates[i, j, k].

    `reduction` is "replace", "add", "mul", "amin" or "amax". x, indices and updates have one rank, indices
    and updates one shape, which may be smaller than x outside of `axis`. Which of several updates of one
    element replaces it is undefined.
    """

    name = "scatter"

    def infer(
        self,
        x: TensorType,
        indices: TensorType,
        updates: TensorType,
        *,
        axis: int,
        reduction: str = "replace",
    ) -> TensorType:
        _require_indices(indices)
        _require_axis(x, axis)
        _require_reduction(reduction)
        _require_within(indices, x, axis)
        require_same_dtype(x=x, updates=updates)
        require(
            updates.rank == indices.rank and all(map(same_dim, updates.shape, indices.shape)),
            f"updates {updates} and indices {indices} must have one shape",
        )
        return x

    def evaluate(self, x: Tensor, indices: Tensor, updates: Tensor, *, axis: int, reduction: str = "replace") -> Tensor:
        if reduction == "replace":
            return torch.scatter(x, axis, indices.long(), updates)
        return torch.scatter_reduce(x, axis, indices.long(), updates, _TORCH_REDUCTIONS[reduction], include_self=True)

    def axes(self, operation: Operation) -> list[Tie]:
        x, indices, axis = operation.operand(0).type, operation.operand(1).type, operation.attributes["axis"]
        ties = [Tie(Axis(1, dim), Axis(2, dim)) for dim in range(indices.rank)]
        for dim in range(x.rank):
            ties.append(Tie(Axis(0, dim), Axis(-1, dim)))
            if dim != axis and same_dim(x.shape[dim], indices.shape[dim]):
                ties.append(Tie(Axis(2, dim), Axis(-1, dim)))
        return ties

    def cost(self, operation: Operation) -> Cost:
        return Cost(operation.operand(2).type.numel, moved_bytes(operation))


class ScatterSlices(OpDefinition):
    """x, with the slices x[a..., indices[i], b...] replaced by, or combined with, updates[a..., i, b...].

    The counterpart of `take` with a vector of indices: `axis` is the dimension of x that is indexed, and of
    updates that runs over the indices. `reduction` as in `scatter`; which of several updates of one slice
    replaces it is undefined.
    """

    name = "scatter_slices"

    def infer(
        self,
        x: TensorType,
        indices: TensorType,
        updates: TensorType,
        *,
        axis: int,
        reduction: str = "replace",
    ) -> TensorType:
        _require_indices(indices)
        _require_axis(x, axis)
        _require_reduction(reduction)
        require_same_dtype(x=x, updates=updates)
        require(indices.rank == 1, f"indices must be a vector, got {indices}")
        expected = (*x.shape[:axis], indices.shape[0], *x.shape[axis + 1 :])
        require(
            updates.rank == x.rank and all(map(same_dim, updates.shape, expected)),
            f"updates {updates} must have shape {expected}",
        )
        return x

    def evaluate(self, x: Tensor, indices: Tensor, updates: Tensor, *, axis: int, reduction: str = "replace") -> Tensor:
        shape = [1] * x.dim()
        shape[axis] = -1
        spread = indices.long().reshape(shape).expand(updates.shape)
        if reduction == "replace":
            return torch.scatter(x, axis, spread, updates)
        return torch.scatter_reduce(x, axis, spread, updates, _TORCH_REDUCTIONS[reduction], include_self=True)

    def axes(self, operation: Operation) -> list[Tie]:
        axis = operation.attributes["axis"]
        ties = [Tie(Axis(1, 0), Axis(2, axis))]
        for dim in range(operation.operand(0).type.rank):
            ties.append(Tie(Axis(0, dim), Axis(-1, dim)))
            if dim != axis:
                ties.append(Tie(Axis(2, dim), Axis(-1, dim)))
        return ties

    def cost(self, operation: Operation) -> Cost:
        return Cost(operation.operand(2).type.numel, moved_bytes(operation))


def _require_within(indices: TensorType, x: TensorType, axis: int) -> None:
    require(indices.rank == x.rank, f"x {x} and indices {indices} must have one rank")
    for dim, (small, large) in enumerate(zip(indices.shape, x.shape, strict=True)):
        if dim != axis and isinstance(small, int) and isinstance(large, int):
            require(small <= large, f"indices {indices} are larger than {x} in dimension {dim}")


def _touched(operation: Operation, slot: int) -> Cost:
    """No arithmetic; of operand `slot` only as many elements are read as the result has."""
    table = operation.operand(slot).type
    result = operation.result.type
    unread = (table.numel - result.numel) * table.dtype.bits
    return Cost(0, moved_bytes(operation) - (unread // 8 if isinstance(unread, int) else unread / 8))


DEFINITIONS: tuple[OpDefinition, ...] = (Take(), Gather(), Scatter(), ScatterSlices())
