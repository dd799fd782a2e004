"""What is looked up in a compiled object (ELF, little-endian): its size in memory, and what it expects of others."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from whet.errors import InternalError

_SYMBOL_TABLE: Final = 2
_ALLOCATED: Final = 2
_WEAK: Final = 2
_UNDEFINED: Final = 0


@dataclass(frozen=True)
class _Class:
    """Where the fields lie for one word size: struct formats and the indexes of the fields that are read."""

    header: str
    section: str
    symbol: str
    section_of_symbol: int
    info_of_symbol: int


_CLASSES: Final = {
    1: _Class("<16xHHIIIIIHHHHHH", "<IIIIIIIIII", "<IIIBBH", 5, 3),
    2: _Class("<16xHHIQQQIHHHHHH", "<IIQQQQIIQQ", "<IBBHQQ", 3, 1),
}


@dataclass(frozen=True)
class ObjectFile:
    """`size`: bytes of code and constant data when loaded; `needed`: symbols that another object must define, or may
    (weak ones).
    """

    size: int
    needed: frozenset[str]


def read_object(data: bytes) -> ObjectFile:
    """Read the bytes of an object file. Raises InternalError where they are none."""
    if data[:4] != b"\x7fELF" or data[5] != 1:
        raise InternalError("the code generator wrote no little-endian ELF object")
    layout = _CLASSES[data[4]]
    header = struct.unpack_from(layout.header, data)
    offset, step, count = header[5], header[10], header[11]
    sections = [struct.unpack_from(layout.section, data, offset + index * step) for index in range(count)]
    size = sum(section[5] for section in sections if section[2] & _ALLOCATED)
    needed = {name for section in sections if section[1] == _SYMBOL_TABLE for name in _needed(data, sections, section)}
    return ObjectFile(size, frozenset(needed))


def _needed(data: bytes, sections: list[tuple[int, ...]], table: tuple[int, ...]) -> Iterator[str]:
    layout = _CLASSES[data[4]]
    names = sections[table[6]][4]
    for offset in range(table[4], table[4] + table[5], table[9]):
        symbol = struct.unpack_from(layout.symbol, data, offset)
        weak = symbol[layout.info_of_symbol] >> 4 == _WEAK
        if symbol[0] and (weak or symbol[layout.section_of_symbol] == _UNDEFINED):
            start = names + symbol[0]
            yield data[start : data.index(b"\0", start)].decode()
