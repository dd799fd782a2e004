"""Reductions over dimensions, and scans along one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from whet.ir.definition import (
    Axis,
    Cost,
    OpDefinition,
    Tie,
    moved_bytes,
    require,
    require_float,
    same_rank_ties,
)
from whet.ir.dimensions import Dim
from whet.ir.graph import Operation
from whet.ir.types import DType, TensorType

# The mean of integers is a cast of its own.
_FLOAT_ONLY = frozenset({"mean"})


class Reduction(OpDefinition):
    """f over `dims`, which stay as 1 where `keepdims`. An empty `dims` reduces nothing."""

    def __init__(self, name: str, function: Callable[[Tensor, tuple[int, ...], bool], Tensor], to_bool: bool) -> None:
        self.name = name
        self._function = function
        self._to_bool = to_bool

    def infer(self, x: TensorType, *, dims: tuple[int, ...], keepdims: bool = False) -> TensorType:
        if self.name in _FLOAT_ONLY:
            require_float(x=x)
        return TensorType(reduced_shape(x, dims, keepdims), DType.BOOL if self._to_bool else x.dtype)

    def evaluate(self, x: Tensor, *, dims: tuple[int, ...], keepdims: bool = False) -> Tensor:
        if self._to_bool:
            x = x != 0
        return self._function(x, dims, keepdims) if dims else x

    def axes(self, operation: Operation) -> list[Tie]:
        return summed_ties(operation, operation.attributes["dims"], operation.attributes["keepdims"])

    def cost(self, operation: Operation) -> Cost:
        return Cost(operation.operand(0).type.numel, moved_bytes(operation))


def reduced_shape(x: TensorType, dims: tuple[int, ...], keepdims: bool) -> tuple[Dim, ...]:
    """The shape that is left of `x` after a reduction over `dims`. Raises InferError."""
    require(all(0 <= dim < x.rank for dim in dims), f"dims {dims} are outside of {x}")
    require(len(set(dims)) == len(dims), f"dims {dims} repeat")
    if keepdims:
        return tuple(1 if dim in dims else size for dim, size in enumerate(x.shape))
    return tuple(size for dim, size in enumerate(x.shape) if dim not in dims)


def reduction_ties(operation: Operation, dims: tuple[int, ...], keepdims: bool) -> list[Tie]:
    """Each dimension that is not reduced, with itself in the result."""
    kept = [dim for dim in range(operation.operand(0).type.rank) if dim not in dims]
    return [Tie(Axis(0, dim), Axis(-1, dim if keepdims else index)) for index, dim in enumerate(kept)]


def summed_ties(operation: Operation, dims: tuple[int, ...], keepdims: bool) -> list[Tie]:
    """As `reduction_ties`; besides, an index of a dimension that is reduced may go alone, as in a normalization."""
    alone = [Tie(Axis(0, dim), Axis(0, dim)) for dim in dims]
    return [*reduction_ties(operation, dims, keepdims), *alone]


class Var(OpDefinition):
    """Variance over `dims`, divided by n - correction."""

    name = "var"

    def infer(
        self, x: TensorType, *, dims: tuple[int, ...], keepdims: bool = False, correction: float = 1
    ) -> TensorType:
        require_float(x=x)
        require(len(dims) > 0, "the variance needs a dimension to be taken over")
        return TensorType(reduced_shape(x, dims, keepdims), x.dtype)

    def evaluate(self, x: Tensor, *, dims: tuple[int, ...], keepdims: bool = False, correction: float = 1) -> Tensor:
        return torch.var(x, dims, correction=correction, keepdim=keepdims)

    def axes(self, operation: Operation) -> list[Tie]:
        return summed_ties(operation, operation.attributes["dims"], operation.attributes["keepdims"])

    def cost(self, operation: Operation) -> Cost:
        return Cost(4 * operation.operand(0).type.numel, moved_bytes(operation))


class ArgReduction(OpDefinition):
    """Index (i64) of the extreme element along `dim`; the first of equals. NaN counts as extreme."""

    def __init__(self, name: str, function: Callable[[Tensor, int, bool], Tensor]) -> None:
        self.name = name
        self._function = function

    def infer(self, x: TensorType, *, dim: int, keepdims: bool = False) -> TensorType:
        return TensorType(reduced_shape(x, (dim,), keepdims), DType.I64)

    def evaluate(self, x: Tensor, *, dim: int, keepdims: bool = False) -> Tensor:
        return self._function(x, dim, keepdims)

    def axes(self, operation: Operation) -> list[Tie]:
        return reduction_ties(operation, (operation.attributes["dim"],), operation.attributes["keepdims"])


class Scan(OpDefinition):
    """Running sum, product, extreme or log Σ exp along `dim`, the element itself included; NaN stays from its
    first on.
    """

    def __init__(self, name: str, function: Callable[[Tensor, int], Tensor]) -> None:
        self.name = name
        self._function = function

    def infer(self, x: TensorType, *, dim: int) -> TensorType:
        require(0 <= dim < x.rank, f"dim {dim} is outside of {x}")
        return x

    def evaluate(self, x: Tensor, *, dim: int) -> Tensor:
        return self._function(x, dim).to(x.dtype)

    def axes(self, operation: Operation) -> list[Tie]:
        return same_rank_ties(operation)


def _product(x: Tensor, dims: tuple[int, ...], keepdims: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = torch.prod(x, dim, keepdims, dtype=x.dtype)
    return x


DEFINITIONS: tuple[OpDefinition, ...] = (
    Reduction("sum", lambda x, dims, keep: torch.sum(x, dims, keep, dtype=x.dtype), False),
    Reduction("mean", torch.mean, False),
    Reduction("prod", _product, False),
    Reduction("amax", torch.amax, False),
    Reduction("amin", torch.amin, False),
    Reduction("any", torch.any, True),
    Reduction("all", torch.all, True),
    Var(),
    ArgReduction("argmax", torch.argmax),
    ArgReduction("argmin", torch.argmin),
    Scan("cumsum", torch.cumsum),
    Scan("cumprod", torch.cumprod),
    Scan("cummax", lambda x, dim: torch.cummax(x, dim).values),
    Scan("cummin", lambda x, dim: torch.cummin(x, dim).values),
    Scan("logcumsumexp", torch.logcumsumexp),
)
