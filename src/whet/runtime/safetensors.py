"""The safetensors format (https://huggingface.co/docs/safetensors, "Format"), as much as a device needs.

8 bytes   little-endian length N of the header
N bytes   JSON: {key: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}
the rest  the tensors, without holes, little-endian, row-major
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from whet.runtime.dtypes import DTYPES, FROM_LONG, FROM_SAFETENSORS, Array

# The format's own limit: a longer header is damage.
HEADER_LIMIT: Final = 100_000_000
# TVM's kernels may load whole vectors: their buffers begin at multiples of 64 bytes (kAllocAlignment).
ALIGNMENT: Final = 64


@dataclass(frozen=True)
class RawTensor:
    """A tensor as it lies in memory: `dtype` is Whet's name, `array` holds the bits (uint16 for "bf16")."""

    dtype: str
    array: Array

    def __post_init__(self) -> None:
        if self.array.dtype != DTYPES[self.dtype].storage:
            raise ValueError(f"{self.dtype} is stored as {DTYPES[self.dtype].storage}, not as {self.array.dtype}")

    @classmethod
    def of(cls, array: Array) -> RawTensor:
        """Wrap a numpy array (ml_dtypes.bfloat16 too). Raises ValueError for types that Whet has not."""
        element = FROM_LONG.get(array.dtype.name)
        if element is None:
            raise ValueError(f"no element type for numpy's {array.dtype}")
        if array.dtype.name == "bfloat16":
            return cls(element.name, array.view(np.uint16))
        return cls(element.name, array.astype(element.storage, copy=False))


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: offsets in bytes from the end of the header."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def aligned_empty(nbytes: int) -> Array:
    """Uninitialized bytes at an address that is a multiple of 64."""
    buffer = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + nbytes]


def encode_header(tensors: Mapping[str, RawTensor]) -> bytes:
    """Length and JSON header of a file with these tensors in their order, padded so that the data is
    64-aligned.
    """
    header: dict[str, Any] = {}
    offset = 0
    for key, tensor in tensors.items():
        end = offset + tensor.array.nbytes
        shape = list(tensor.array.shape)
        header[key] = {
            "dtype": DTYPES[tensor.dtype].safetensors,
            "shape": shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def chunks(tensors: Mapping[str, RawTensor]) -> Iterator[memoryview]:
    """The whole file, piece by piece; nothing is copied but tensors that are not contiguous."""
    yield memoryview(encode_header(tensors))
    for tensor in tensors.values():
        if tensor.array.nbytes:
            yield np.ascontiguousarray(tensor.array).reshape(-1).view(np.uint8).data


def decode_header(text: bytes, data_size: int) -> tuple[Entry, ...]:
    """The entries in the order of their data, checked against each other and the size of the data.

    Raises ValueError: bad JSON, unknown dtype, sizes that do not fit the shape, overlaps, holes, data left
    over.
    """
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("the header is not an object")
    header.pop("__metadata__", None)
    entries = sorted((_entry(key, value) for key, value in header.items()), key=lambda entry: (entry.begin, entry.end))
    position = 0
    for entry in entries:
        if entry.begin != position:
            raise ValueError(f"{entry.key!r} begins at {entry.begin}, the tensor before it ends at {position}")
        position = entry.end
    if position != data_size:
        raise ValueError(f"the tensors take {position} bytes, the file has {data_size}")
    return tuple(entries)


def _entry(key: str, value: Any) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{key!r} has no dtype, shape and data_offsets")
    element = FROM_SAFETENSORS.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if element is None:
        raise ValueError(f"{key!r} has the dtype {value['dtype']!r}")
    shape, offsets = value["shape"], value["data_offsets"]
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{key!r} has the shape {shape} and the offsets {offsets}")
    if offsets[1] - offsets[0] != math.prod(shape) * element.itemsize:
        raise ValueError(f"{key!r} of shape {shape} and {element.name} has {offsets[1] - offsets[0]} bytes")
    return Entry(key, element.name, tuple(shape), offsets[0], offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(type(n) is int and 0 <= n < 1 << 62 for n in value)
