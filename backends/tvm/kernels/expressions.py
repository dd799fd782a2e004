"""Names for TVM's objects in annotations: the package has no types of its own."""

from __future__ import annotations

from typing import Any, TypeAlias

import tvm
from tvm import tirx

Expression: TypeAlias = Any
"""A scalar TVM expression, or a number that may stand for one."""

Dimension: TypeAlias = Any
"""An extent: an int, or a TVM expression where it is symbolic (a constant one counts as known)."""


def extent(dimension: Dimension) -> int | None:
    """The integer value of a dimension, None where it is symbolic."""
    if isinstance(dimension, int):
        return dimension
    if isinstance(dimension, tirx.IntImm):
        return int(dimension.value)
    return None


def element_bytes(dtype: str) -> int:
    """Bytes that one number takes up. Raises ValueError for a dtype that TVM has not got."""
    return int(-(-tvm.runtime.DataType(dtype).bits // 8))
