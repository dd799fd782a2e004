"""Element types and tensor types."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import torch

from whet.ir.dimensions import Dim, format_dim, same_dim

TorchDType: TypeAlias = torch.dtype


class DType(Enum):
    """Element type; the value is its name in the text form. `i4` is stored one element a byte, in int8."""

    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    U8 = "u8"
    I4 = "i4"
    BOOL = "bool"

    @property
    def torch(self) -> TorchDType:
        """The torch dtype that stores elements of this type."""
        return _TORCH[self]

    @property
    def bits(self) -> int:
        """Bits of one element (a bool takes a byte)."""
        return _BITS[self]

    @property
    def is_float(self) -> bool:
        return self in _FLOATS

    @property
    def is_integer(self) -> bool:
        """Signed or unsigned integer; bool is not."""
        return self not in _FLOATS and self is not DType.BOOL

    @property
    def integer_range(self) -> tuple[int, int]:
        """Smallest and largest value of an integer type."""
        if self is DType.U8:
            return 0, 255
        half = 1 << (self.bits - 1)
        return -half, half - 1

    @classmethod
    def of(cls, dtype: TorchDType) -> DType:
        """The element type of a torch dtype. Raises KeyError for types that Whet has not (complex,
        quantized).
        """
        return _FROM_TORCH[dtype]


_TORCH = {
    DType.F64: torch.float64,
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.I64: torch.int64,
    DType.I32: torch.int32,
    DType.I16: torch.int16,
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.I4: torch.int8,
    DType.BOOL: torch.bool,
}
_BITS = {
    DType.F64: 64,
    DType.F32: 32,
    DType.F16: 16,
    DType.BF16: 16,
    DType.I64: 64,
    DType.I32: 32,
    DType.I16: 16,
    DType.I8: 8,
    DType.U8: 8,
    DType.I4: 4,
    DType.BOOL: 8,
}
_FROM_TORCH = {storage: dtype for dtype, storage in _TORCH.items() if dtype is not DType.I4}
_FLOATS = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16})


@dataclass(frozen=True)
class TensorType:
    """Shape and element type of a value; a dimension is an int or an integer expression over symbols."""

    shape: tuple[Dim, ...]
    dtype: DType

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> Dim:
        """Number of elements, symbolic where a dimension is."""
        total: Dim = 1
        for dim in self.shape:
            total = total * dim
        return total

    @property
    def is_static(self) -> bool:
        return all(isinstance(dim, int) for dim in self.shape)

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape as ints. Raises ValueError where a dimension is symbolic."""
        if not self.is_static:
            raise ValueError(f"{self} has symbolic dimensions")
        return tuple(int(dim) for dim in self.shape)

    def same_as(self, other: TensorType) -> bool:
        """Whether both are equal for every value of their symbols; `==` compares how the dimensions are
        written.
        """
        if self.dtype is not other.dtype or self.rank != other.rank:
            return False
        return all(map(same_dim, self.shape, other.shape))

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorType:
        return cls(tuple(tensor.shape), DType.of(tensor.dtype))

    def __str__(self) -> str:
        return f"{self.dtype.value}[{', '.join(format_dim(dim) for dim in self.shape)}]"
