"""Operations without operands: constants, ranges, and scalars made from dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from whet.ir.definition import Cost, Kept, OpDefinition, kept_shape, require
from whet.ir.dimensions import Dim
from whet.ir.graph import Operation
from whet.ir.types import DType, TensorType


class Constant(OpDefinition):
    """A tensor that is known at compile time; `key` names it in the weights file. Tied weights are one
    constant.
    """

    name = "constant"
    independent = True

    def infer(self, *, tensor: Tensor, key: str = "", dtype: DType | None = None) -> TensorType:
        stored = DType.of(tensor.dtype)
        fits = dtype in (None, stored) or (dtype is DType.I4 and stored is DType.I8)
        require(fits, f"a tensor stored as {stored.value} cannot be a constant of type {dtype and dtype.value}")
        return TensorType(tuple(tensor.shape), dtype or stored)

    def evaluate(self, *, tensor: Tensor, key: str = "", dtype: DType | None = None) -> Tensor:
        return tensor

    def resized(self, operation: Operation, kept: Kept) -> dict[str, Any]:
        tensor: Tensor = operation.attributes["tensor"]
        for axis, indices in kept.items():
            tensor = tensor.index_select(axis.dim, torch.tensor(indices, dtype=torch.int64, device=tensor.device))
        return {**operation.attributes, "tensor": tensor}

    def cost(self, operation: Operation) -> Cost:
        return Cost(0, 0)


class Full(OpDefinition):
    """A tensor of `shape` filled with `value` (a number, or a dimension expression)."""

    name = "full"
    independent = True

    def infer(self, *, shape: tuple[Dim, ...], value: float | int | bool | Dim, dtype: DType) -> TensorType:
        return TensorType(shape, dtype)

    def evaluate(self, *, shape: tuple[int, ...], value: float | int | bool, dtype: DType) -> Tensor:
        return torch.full(shape, value, dtype=dtype.torch)

    def resized(self, operation: Operation, kept: Kept) -> dict[str, Any]:
        return {**operation.attributes, "shape": kept_shape(operation.attributes["shape"], kept)}


class Iota(OpDefinition):
    """start, start + step, ... : `length` elements."""

    name = "iota"

    def infer(self, *, length: Dim, start: Dim | float = 0, step: Dim | float = 1, dtype: DType) -> TensorType:
        return TensorType((length,), dtype)

    def evaluate(self, *, length: int, start: float = 0, step: float = 1, dtype: DType) -> Tensor:
        index = torch.arange(length, dtype=torch.float64 if dtype.is_float else torch.int64)
        return (index * step + start).to(dtype.torch)


DEFINITIONS: tuple[OpDefinition, ...] = (Constant(), Full(), Iota())
