"""Integer formats: the type that stores codes, and which of its codes are used."""

from __future__ import annotations

from dataclasses import dataclass

from whet.errors import PassError
from whet.ir.types import DType

FEWEST_BITS, MOST_BITS = 2, 8


def require_bits(bits: int, what: str) -> None:
    """Guard. Raises PassError for a number of bits that no format has."""
    if not FEWEST_BITS <= bits <= MOST_BITS:
        raise PassError(f"{what} is {bits}; it must be from {FEWEST_BITS} to {MOST_BITS}")


@dataclass(frozen=True)
class Format:
    """Codes of `bits` bits stored in `dtype`: 0 … 2ᵇ - 1 where that is u8, -2ᵇ⁻¹ … 2ᵇ⁻¹ - 1 in signed types.

    `symmetric` holds the zero point at the middle code (0, or 2ᵇ⁻¹ in u8), and leaves the lowest code unused.

    Raises PassError for other types than u8, i8 and i4, and for bits that these have not.
    """

    dtype: DType
    bits: int = 8
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in (DType.U8, DType.I8, DType.I4):
            raise PassError(f"codes are stored in u8, i8 or i4, not in {self.dtype.value}")
        require_bits(self.bits, "bits")
        if self.bits > self.dtype.bits:
            raise PassError(f"{self.dtype.value} has no codes of {self.bits} bits")

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and the highest code in use."""
        low, high = (
            (0, 2**self.bits - 1) if self.dtype is DType.U8 else (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)
        )
        return (low + 1, high) if self.symmetric else (low, high)

    @property
    def middle(self) -> int:
        """The zero point of a symmetric format."""
        return 2 ** (self.bits - 1) if self.dtype is DType.U8 else 0

    @property
    def fills(self) -> bool:
        """Whether saturation to the type keeps codes in range, so that none need be clamped."""
        return self.bits == self.dtype.bits


def weight_format(bits: int) -> Format:
    """The format of weights: symmetric; i4 up to 4 bits, i8 above (numerics: Q1)."""
    require_bits(bits, "weight_bits")
    return Format(DType.I4 if bits <= DType.I4.bits else DType.I8, bits, symmetric=True)
