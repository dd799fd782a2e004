"""Sorting along one dimension: all of it, or the first k."""

from __future__ import annotations

import torch
from torch import Tensor

from whet.ir.definition import Cost, OpDefinition, Tie, moved_bytes, require, same_rank_ties
from whet.ir.dimensions import Dim
from whet.ir.graph import Operation
from whet.ir.types import DType, TensorType


class Sort(OpDefinition):
    """(values, indices): x in order along `axis`, and where each was (i64). Stable; NaN is the greatest."""

    name = "sort"

    def infer(self, x: TensorType, *, axis: int, descending: bool = False) -> tuple[TensorType, TensorType]:
        require(0 <= axis < x.rank, f"axis {axis} is outside of {x}")
        return x, TensorType(x.shape, DType.I64)

    def evaluate(self, x: Tensor, *, axis: int, descending: bool = False) -> tuple[Tensor, Tensor]:
        values, indices = torch.sort(x, dim=axis, descending=descending, stable=True)
        return values, indices

    def axes(self, operation: Operation) -> list[Tie]:
        return same_rank_ties(operation, excluded=frozenset({operation.attributes["axis"]}))

    def cost(self, operation: Operation) -> Cost:
        """A comparison sort makes n log2 n comparisons; a symbolic n counts as 1024."""
        size = operation.operand(0).type.shape[operation.attributes["axis"]]
        levels = max(size - 1, 1).bit_length() if isinstance(size, int) else 10
        return Cost(operation.operand(0).type.numel * levels, moved_bytes(operation))


class TopK(OpDefinition):
    """(values, indices) of the `k` greatest (or least) along `axis`, sorted; equals in any order."""

    name = "topk"

    def infer(self, x: TensorType, *, k: Dim, axis: int, largest: bool = True) -> tuple[TensorType, TensorType]:
        require(0 <= axis < x.rank, f"axis {axis} is outside of {x}")
        size = x.shape[axis]
        if isinstance(k, int) and isinstance(size, int):
            require(0 <= k <= size, f"k {k} is not in 0..{size}")
        shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
        return TensorType(shape, x.dtype), TensorType(shape, DType.I64)

    def evaluate(self, x: Tensor, *, k: int, axis: int, largest: bool = True) -> tuple[Tensor, Tensor]:
        values, indices = torch.topk(x, k, dim=axis, largest=largest, sorted=True)
        return values, indices

    def axes(self, operation: Operation) -> list[Tie]:
        return same_rank_ties(operation, excluded=frozenset({operation.attributes["axis"]}))

    def cost(self, operation: Operation) -> Cost:
        return Cost(operation.operand(0).type.numel, moved_bytes(operation))


DEFINITIONS: tuple[OpDefinition, ...] = (Sort(), TopK())
