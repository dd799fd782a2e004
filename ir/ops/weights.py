"""Operations that stand between the stored form of a weight and the layer that uses it."""

from __future__ import annotations

import torch
from torch import Tensor

from whet.ir.definition import Axis, IndexMap, OpDefinition, Tie, require, require_float
from whet.ir.dimensions import Dim, floor_div, same_dim
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


class DequantizeBlocks(OpDefinition):
    """(x - zero_point) · scale with parameters for every `group` elements of the last dimension.

    x [..., K] i4, i8 or u8; scale f32 and zero_point (i32, or of x's type) [..., ceil(K / group)]; each step rounded as
    in `dequantize`. With group = K there is one scale a row.
    """

    name = "dequantize_blocks"

    def infer(
        self, x: TensorType, scale: TensorType, zero_point: TensorType | None = None, *, group: int
    ) -> TensorType:
        require(x.dtype in _CODES, f"dequantizes i4, i8 or u8, got {x}")
        require(x.rank > 0 and group > 0, f"the last dimension of {x} is to be in groups of {group}")
        require(scale.dtype is DType.F32, f"scale must be f32, got {scale}")
        shape = (*x.shape[:-1], groups_of(x.shape[-1], group))
        for name, parameter in {"scale": scale, "zero_point": zero_point}.items():
            fits = parameter is None or (parameter.rank == x.rank and all(map(same_dim, parameter.shape, shape)))
            require(fits, f"{name} {parameter} must have a number for each {group} elements of {x}")
        require(
            zero_point is None or zero_point.dtype in (DType.I32, x.dtype),
            f"zero_point must be i32 or {x.dtype.value}, got {zero_point}",
        )
        return TensorType(x.shape, DType.F32)

    def evaluate(self, x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, group: int) -> Tensor:
        def spread(parameter: Tensor) -> Tensor:
            return parameter.repeat_interleave(group, -1)[..., : x.shape[-1]]

        centered = x.to(torch.int32)
        if zero_point is not None:
            centered = centered - spread(zero_point)
        return centered.float() * spread(scale)

    def axes(self, operation: Operation) -> list[Tie]:
        rank, last = operation.result.type.rank, operation.result.type.rank - 1
        block = IndexMap(divide=operation.attributes["group"])
        ties = elementwise_ties(operation, (0,))
        for slot, operand in enumerate(operation.operands):
            if slot and operand is not None:
                ties += [Tie(Axis(slot, dim), Axis(-1, dim)) for dim in range(rank - 1)]
                ties.append(Tie(Axis(slot, last), Axis(-1, last), right_map=block))
        return ties


_CODES = (DType.I4, DType.I8, DType.U8)


def groups_of(size: Dim, group: int) -> Dim:
    """How many groups of `group` it takes, the last one perhaps shorter."""
    return floor_div(size + group - 1, group)


DEFINITIONS: tuple[OpDefinition, ...] = (Masked(), Lookup(), DequantizeBlocks())
