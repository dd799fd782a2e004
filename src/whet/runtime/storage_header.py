"""What the header of packed weights says: how each tensor is stored (see `whet.runtime.storage`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from whet.runtime.dtypes import DTYPES

CODEBOOK_LIMIT: Final = 256
PLAIN, ZSTD = "plain", "zstd"
_WORDS: Final[Mapping[int, str]] = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}


@dataclass(frozen=True)
class PackedTensor:
    """How one tensor is stored. `blocks` names the block of each of its `streams`; `same` a tensor equal to it."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    positions: str = "dense"
    gaps: int = 0
    gap_bits: int = 8
    count: int = 0
    entries: int = 0
    index_bits: int = 8
    blocks: tuple[int, ...] = ()
    same: str = ""

    def __post_init__(self) -> None:
        if self.same:
            return
        if self.dtype not in DTYPES or self.positions not in ("dense", "bitmap", "gaps"):
            raise ValueError(f"{self.key!r} is {self.dtype}, {self.positions}")
        bits = 1 <= self.gap_bits <= 8 and 1 <= self.index_bits <= 8
        counts = self.entries <= CODEBOOK_LIMIT and self.count <= self.numel and self.gaps <= self.numel
        if not bits or not counts:
            raise ValueError(f"{self.key!r} has impossible numbers")
        if self.positions == "dense" and self.count != self.numel:
            raise ValueError(f"{self.key!r} has {self.count} values for {self.numel} elements")

    @cached_property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.numel * self.itemsize

    @property
    def word(self) -> np.dtype[Any]:
        """The unsigned integer that holds the bits of one element."""
        return np.dtype(_WORDS[self.itemsize])

    @property
    def streams(self) -> tuple[tuple[str, int], ...]:
        """Kind and size in bytes of each stream, in their order."""
        where = {
            "dense": (),
            "bitmap": (("bitmap", symbols_size(self.numel, 1)),),
            "gaps": (("gaps", symbols_size(self.gaps, self.gap_bits)),),
        }[self.positions]
        if not self.entries:
            return (*where, (f"values{self.itemsize}", self.count * self.itemsize))
        indices = ("indices", symbols_size(self.count, self.index_bits))
        return (*where, (f"codebook{self.itemsize}", self.entries * self.itemsize), indices)

    @property
    def form(self) -> str:
        """In words, for reports."""
        if self.same:
            return f"same as {self.same}"
        values = f"codebook of {self.entries}" if self.entries else "values"
        return values if self.positions == "dense" else f"{self.positions}, {values}"


@dataclass(frozen=True)
class Block:
    """Some streams, one after the other; `size` is that of the expanded bytes."""

    method: str
    stored: int
    size: int


@dataclass(frozen=True)
class PackedHeader:
    """What lies in a packed member, and how."""

    tensors: tuple[PackedTensor, ...]
    blocks: tuple[Block, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all tensors that are stored here."""
        return sum(tensor.nbytes for tensor in self.tensors if not tensor.same)

    def to_json(self) -> bytes:
        """The header as JSON; fields at their default are left out."""
        defaults = {name: field.default for name, field in PackedTensor.__dataclass_fields__.items()}
        tensors = [
            {name: value for name, value in _fields(tensor).items() if value != defaults[name]}
            for tensor in self.tensors
        ]
        blocks = [[block.method, block.stored, block.size] for block in self.blocks]
        return json.dumps({"tensors": tensors, "blocks": blocks}, separators=(",", ":")).encode()


def _fields(tensor: PackedTensor) -> dict[str, Any]:
    return {name: getattr(tensor, name) for name in PackedTensor.__dataclass_fields__}


def symbols_size(count: int, bits: int) -> int:
    """Bytes of `count` symbols of that many bits."""
    return -(-count * bits // 8)


def parse_header(text: bytes, data_size: int) -> PackedHeader:
    """Header of a member whose blocks take `data_size` bytes. Raises ValueError where its numbers disagree."""
    value = json.loads(text)
    if not isinstance(value, dict) or set(value) != {"tensors", "blocks"}:
        raise ValueError("the header is no table of tensors and blocks")
    blocks = tuple(_block(item) for item in _items(value["blocks"]))
    tensors = tuple(_tensor(item) for item in _items(value["tensors"]))
    if sum(block.stored for block in blocks) != data_size:
        raise ValueError(f"the blocks do not fill {data_size} bytes")
    used = [0] * len(blocks)
    for tensor in tensors:
        for number, (_, size) in zip(tensor.blocks, () if tensor.same else tensor.streams, strict=True):
            if number >= len(blocks):
                raise ValueError(f"{tensor.key!r} lies in block {number} of {len(blocks)}")
            used[number] += size
    if used != [block.size for block in blocks]:
        raise ValueError("the streams do not fill their blocks")
    if len({tensor.key for tensor in tensors}) != len(tensors):
        raise ValueError("a tensor is stored twice")
    return PackedHeader(tensors, blocks)


def _items(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{str(value)[:60]} is not a list")
    return value


def _block(value: Any) -> Block:
    method, stored, size = _items(value)
    if method not in (PLAIN, ZSTD) or not _is_size(stored) or not _is_size(size):
        raise ValueError(f"a block is {str(value)[:60]}")
    if method == PLAIN and stored != size:
        raise ValueError(f"a plain block has {stored} bytes in place of {size}")
    return Block(method, stored, size)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _tensor(value: Any) -> PackedTensor:
    if not isinstance(value, dict) or not value.keys() <= PackedTensor.__dataclass_fields__.keys():
        raise ValueError(f"a tensor is {str(value)[:60]}")
    fields = dict(value)
    for name in ("shape", "blocks"):
        fields[name] = tuple(_items(fields.get(name, [])))
        if len(fields[name]) > 64 or not all(map(_is_size, fields[name])):
            raise ValueError(f"{name} of a tensor is {str(fields[name])[:60]}")
    for name, item in fields.items():
        expected = type(getattr(_EXAMPLE, name))
        if type(item) is not expected or (expected is int and not _is_size(item)):
            raise ValueError(f"{name} of a tensor is {str(item)[:60]!r}")
    if not {"key", "dtype"} <= fields.keys():
        raise ValueError("a tensor has no key or no dtype")
    return PackedTensor(**fields)


_EXAMPLE: Final = PackedTensor("key", "f32", (0,))
