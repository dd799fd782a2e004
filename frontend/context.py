"""What a converter works with: the builder, the result's type as torch computed it, and type promotion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import sympy
import torch

from whet.frontend.symbols import emit_number
from whet.ir.builder import Builder
from whet.ir.dimensions import Dim
from whet.ir.graph import Value
from whet.ir.types import DType, TensorType

Number: TypeAlias = bool | int | float
Operand: TypeAlias = Value | Number | sympy.Expr


class Context:
    """One operator call being converted.

    Converters get the call's arguments in the schema's order: Values for tensors, ints or dimension
    expressions for sizes, Python numbers, lists of these, None. They return a Value, or a tuple of them as
    the operator does.
    """

    def __init__(
        self,
        builder: Builder,
        result_types: Sequence[TensorType | None],
        target: str,
        used: Sequence[bool] = (),
    ) -> None:
        self.builder = builder
        self.result_types = tuple(result_types)
        self.target = target
        self.used = tuple(used)
        """Of an operator with several results: which of them anybody takes."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Emit an operation: `c.linear(x, w)`."""
        return getattr(self.builder, name)  # type: ignore[no-any-return]

    @property
    def type(self) -> TensorType:
        """The type of the (first) result."""
        (first, *_) = self.result_types
        assert first is not None
        return first

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    def cast(self, x: Value, dtype: DType) -> Value:
        """x itself where it has that dtype already."""
        if x.type.dtype is dtype:
            return x
        result: Value = self.builder.cast(x, dtype=dtype)
        return result

    def operand(self, x: Operand, dtype: DType) -> Value:
        """A tensor operand of `dtype`, from a value, a number or a dimension expression."""
        if isinstance(x, Value):
            return self.cast(x, dtype)
        if isinstance(x, sympy.Expr):
            if not x.is_integer:
                return self.cast(emit_number(self.builder, x), dtype)
            return self.builder.full(shape=(), value=x, dtype=dtype)
        return self.builder.scalar(x, dtype)

    def promote(self, *operands: Operand) -> list[Value]:
        """All operands cast to the dtype that torch's type promotion gives them together."""
        dtype = self.promoted(*operands)
        return [self.operand(x, dtype) for x in operands]

    def promoted(self, *operands: Operand) -> DType:
        stand_ins = [_stand_in(x) for x in operands]
        result = stand_ins[0]
        dtype = torch.result_type(result, result)
        for item in stand_ins[1:]:
            dtype = torch.result_type(result, item)
            result = _wider(result, item, dtype)
        return DType.of(dtype)

    def dim(self, dim: int, rank: int) -> int:
        """A dimension index without its sign; scalars have one imagined dimension."""
        return dim % max(rank, 1)

    def dims(self, dims: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
        """Dimension indices without their signs; None (or, where torch says so, empty) means all."""
        if dims is None:
            return tuple(range(rank))
        if isinstance(dims, int):
            dims = [dims]
        return tuple(dim % max(rank, 1) for dim in dims) if rank else ()

    def reshape_to(self, x: Value, shape: Sequence[Dim]) -> Value:
        """x itself where it has that shape already."""
        if x.type.shape == tuple(shape):
            return x
        result: Value = self.builder.reshape(x, shape=tuple(shape))
        return result


def _stand_in(x: Operand) -> Any:
    if isinstance(x, Value):
        return torch.empty((0,) * min(x.type.rank, 1) if x.type.rank else (), dtype=x.type.dtype.torch)
    if isinstance(x, sympy.Expr):
        return 1 if x.is_integer else 1.0
    return x


def _wider(left: Any, right: Any, dtype: torch.dtype) -> torch.Tensor:
    dimensioned = any(isinstance(item, torch.Tensor) and item.dim() for item in (left, right))
    return torch.empty((0,) if dimensioned else (), dtype=dtype)
