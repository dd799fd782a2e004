"""Operations that stand between the stored form of a weight and the layer that uses it."""

from __future__ import annotations

from torch import Tensor

from whet.ir.definition import Axis, OpDefinition, Tie, require, require_float
from whet.ir.graph import Operation
from whet.ir.types import DType, TensorType

CODEBOOK_LIMIT = 256
"""Most entries of a codebook: its indices are bytes."""


def elementwise_ties(operation: Operation, slots: tuple[int, ...]) -> list[Tie]:
    """Ties of the operands in `slots`, all of the result's shape, dimension by dimension."""
    rank = operation.result.type.rank
    return [Tie(Axis(slot, dim), Axis(-1, dim)) for slot in slots for dim in range(rank)]


class Masked(OpDefinition):
    """x where the mask is true, else 0: a pruned weight. Its gradient is masked too, so what is pruned stays so."""

    name = "masked"

    def infer(self, x: TensorType, mask: TensorType) -> TensorType:
        require_float(x=x)
        require(mask.dtype is DType.BOOL, f"the mask must be bool, got {mask}")
        require(mask.shape == x.shape, f"the mask {mask} must have the shape of {x}")
        return x

    def evaluate(self, x: Tensor, mask: Tensor) -> Tensor:
        return x.masked_fill(mask.logical_not(), 0)

    def axes(self, operation: Operation) -> list[Tie]:
        return elementwise_ties(operation, (0, 1))


class Lookup(OpDefinition):
    """codebook[indices]: a weight whose elements share few values (Han et al., Deep Compression, ICLR 2016).

    The gradient of an entry is the sum of those of the elements that share it.
    """

    name = "lookup"

    def infer(self, codebook: TensorType, indices: TensorType) -> TensorType:
        require_float(codebook=codebook)
        require(codebook.rank == 1, f"the codebook must have one dimension, got {codebook}")
        require(indices.dtype is DType.U8, f"indices must be u8, got {indices}")
        (entries,) = codebook.shape
        require(isinstance(entries, int) and 0 < entries <= CODEBOOK_LIMIT, f"1 to {CODEBOOK_LIMIT} entries")
        return TensorType(indices.shape, codebook.dtype)

    def evaluate(self, codebook: Tensor, indices: Tensor) -> Tensor:
        return codebook[indices.long()]

    def axes(self, operation: Operation) -> list[Tie]:
        return elementwise_ties(operation, (1,))


DEFINITIONS: tuple[OpDefinition, ...] = (Masked(), Lookup())
