"""How long a sum of integer products may be before 32 bits overflow (docs/numerics.md, Q6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from whet.ir.dimensions import Dim, DimRange, dim_symbols, product, substitute
from whet.ir.graph import Operation
from whet.ir.types import DType

LARGEST: Final = {DType.U8: 255, DType.I8: 255, DType.I4: 15}
"""|q - zero_point| of activations, at most, for any zero point of the type."""
_LIMIT: Final = 2**31 - 1

# Contraction -> the operand and the first of its dimensions that are summed over.
_SUMMED: Final = {"conv": (1, 1), "linear": (1, 1), "matmul": (0, -1)}


def longest(largest_x: int, largest_w: int) -> int:
    """The most terms |x| · |w| whose sum stays within i32."""
    return _LIMIT // (largest_x * max(largest_w, 1))


def bias_limit(terms: int) -> int:
    """How large a bias beside `terms` products may be."""
    return max(_LIMIT - 255 * 128 * terms, 0)


def terms(operation: Operation, dimensions: Mapping[str, DimRange]) -> int | None:
    """How many products a conv, linear or matmul sums, at most; None where that has no bound."""
    slot, first = _SUMMED[operation.name]
    return upper_bound(product(operation.operand(slot).type.shape[first:]), dimensions)


def upper_bound(dim: Dim, dimensions: Mapping[str, DimRange]) -> int | None:
    """The largest value of a dimension (which grows with its symbols); None where a symbol has no maximum."""
    if isinstance(dim, int):
        return dim
    largest = {item.name: dimensions[item.name].maximum for item in dim_symbols(dim) if item.name in dimensions}
    known = {name: maximum for name, maximum in largest.items() if maximum is not None}
    value = substitute(dim, known) if len(known) == len(dim_symbols(dim)) else None
    return value if isinstance(value, int) else None
