"""Element types of a bundle: one table from Whet's names to numpy, safetensors and the TVM runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ElementType:
    """One element type.

    `storage` is the numpy type that holds the bits (bfloat16 has none in numpy itself: uint16 holds it),
    `long` is the name that numpy, torch and TVM share, `safetensors` the name in a weights file.
    """

    name: str
    long: str
    safetensors: str
    storage: np.dtype[Any]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return int(self.storage.itemsize)


_ROWS: Final = (
    ("f64", "float64", "F64", "<f8"),
    ("f32", "float32", "F32", "<f4"),
    ("f16", "float16", "F16", "<f2"),
    ("bf16", "bfloat16", "BF16", "<u2"),
    ("i64", "int64", "I64", "<i8"),
    ("i32", "int32", "I32", "<i4"),
    ("i16", "int16", "I16", "<i2"),
    ("i8", "int8", "I8", "|i1"),
    ("u64", "uint64", "U64", "<u8"),
    ("u32", "uint32", "U32", "<u4"),
    ("u16", "uint16", "U16", "<u2"),
    ("u8", "uint8", "U8", "|u1"),
    ("bool", "bool", "BOOL", "|b1"),
)

DTYPES: Final[Mapping[str, ElementType]] = MappingProxyType(
    {name: ElementType(name, long, stored, np.dtype(code)) for name, long, stored, code in _ROWS}
)
FROM_LONG: Final[Mapping[str, ElementType]] = MappingProxyType({item.long: item for item in DTYPES.values()})
FROM_SAFETENSORS: Final[Mapping[str, ElementType]] = MappingProxyType(
    {item.safetensors: item for item in DTYPES.values()}
)


def element_type(name: str) -> ElementType:
    """The element type of that short ("f32") or long ("float32") name. Raises ValueError for another."""
    found = DTYPES.get(name) or FROM_LONG.get(name)
    if found is None:
        raise ValueError(f"unknown element type {name!r}; known are {', '.join(DTYPES)}")
    return found


def bfloat16_to_numpy(bits: Array) -> Array:
    """bfloat16 bit patterns (uint16) as ml_dtypes.bfloat16 where that is installed, else as float32."""
    if not _has_ml_dtypes():
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    import ml_dtypes

    return bits.view(ml_dtypes.bfloat16)


@cache
def _has_ml_dtypes() -> bool:
    return find_spec("ml_dtypes") is not None
