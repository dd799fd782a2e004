"""The container of a bundle: a zip of stored (never compressed) members, read strictly.

A general zip reader forgives much: bytes before, between and after the members, headers that contradict each
other, two members of one name, sizes that only decompression would refute. Here every header is held against
the file, so that a damaged or doctored one is refused before anything in it is believed. Layout: APPNOTE.TXT
6.3, sections 4.3 and 4.5.3 (zip64, for weights of 2 GiB and more).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final

# Signature and fields of each record.
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64: Final = struct.Struct("<4sLQL")
_ZIP64_ID: Final = 1
_IN_ZIP64: Final = 0xFFFFFFFF
# 0: a plain old file; UTF8: the name is UTF-8. Anything else means encryption or sizes that come after the
# data.
_FLAGS: Final = frozenset({0, 0x800})
_VERSIONS: Final = frozenset({20, 45})
_SYSTEMS: Final = frozenset({0, 3})
# Permissions and type of a regular file, as archivers write them; a link or a folder is not among them.
_MODES: Final = frozenset({0, 0o600, 0o644, 0o664, 0o755, 0o100600, 0o100644, 0o100664, 0o100755})
_LONGEST_NAME: Final = 255


@dataclass(frozen=True)
class Stored:
    """One member: its bytes are file[offset : offset + size]."""

    offset: int
    size: int
    crc32: int


def read_container(
    file: BinaryIO, file_size: int, names: frozenset[str], optional: frozenset[str] = frozenset()
) -> Mapping[str, Stored]:
    """Where the members lie. Raises ValueError unless the file is a zip of the members `names`, and perhaps of those
    of `optional`, each stored once, with nothing before, between or after them.
    """
    start, size, count = _directory(file, file_size)
    if not len(names) <= count <= len(names) + len(optional):
        raise ValueError(f"it has {count} members in place of {len(names)}")
    # Few members with short names: anything longer is not ours, and is not read into memory.
    if size > count * (_CENTRAL.size + _LONGEST_NAME):
        raise ValueError(f"its directory takes {size} bytes")
    directory = _read(file, start, size)
    members: dict[str, Stored] = {}
    position = data_end = 0
    for _ in range(count):
        name, stored, position = _member(file, directory, position, data_end)
        if name not in names | optional:
            raise ValueError(f"it has the unknown member {name!r}")
        if name in members:
            raise ValueError(f"it has the member {name!r} twice")
        members[name] = stored
        data_end = stored.offset + stored.size
    missing = sorted(names - members.keys())
    if missing:
        raise ValueError(f"it has no member {missing[0]!r}")
    if position != size or data_end != start:
        raise ValueError("its members do not fill it")
    return members


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it ends too early")
    return data


def _directory(file: BinaryIO, file_size: int) -> tuple[int, int, int]:
    """(offset, size, number of entries) of the central directory, which must reach up to the end records."""
    if file_size < _END.size:
        raise ValueError("it is too short for a zip file")
    end_at = file_size - _END.size
    signature, disk, first_disk, here, count, size, start, comment = _END.unpack(_read(file, end_at, _END.size))
    if signature != b"PK\x05\x06" or comment:
        raise ValueError("it does not end as a zip file without a comment does (truncated, or something was added)")
    if disk or first_disk or here != count:
        raise ValueError("its end record speaks of several disks")
    if end_at >= _LOCATOR64.size + _END64.size:
        locator_at = end_at - _LOCATOR64.size
        locator = _LOCATOR64.unpack(_read(file, locator_at, _LOCATOR64.size))
        if locator[0] == b"PK\x06\x07":
            end_at = locator_at - _END64.size
            start, size, count = _directory64(_read(file, end_at, _END64.size), locator, end_at)
    if start + size != end_at:
        raise ValueError("its directory does not reach its end record")
    return start, size, count


def _directory64(record: bytes, locator: tuple[bytes, int, int, int], at: int) -> tuple[int, int, int]:
    fields = _END64.unpack(record)
    signature, rest, made_by, needed, disk, first_disk, here, count, size, start = fields
    expected = (b"PK\x06\x06", _END64.size - 12, 45, 0, 0, count)
    if (signature, rest, needed, disk, first_disk, here) != expected or made_by & 255 != 45:
        raise ValueError("its zip64 end record is damaged")
    if locator[1:] != (0, at, 1):
        raise ValueError("its zip64 locator is damaged")
    return start, size, count


def _member(file: BinaryIO, directory: bytes, position: int, data_end: int) -> tuple[str, Stored, int]:
    """Name and place of the member at `position` of the directory, and the position of the next."""
    if position + _CENTRAL.size > len(directory):
        raise ValueError("its directory ends too early")
    fields = _CENTRAL.unpack_from(directory, position)
    (signature, made_by, needed, flags, method, time, date, crc, packed, size, name_size, extra_size) = fields[:12]
    comment_size, disk, internal, external, header_at = fields[12:]
    if signature != b"PK\x01\x02" or comment_size or disk or internal:
        raise ValueError("an entry of its directory is damaged")
    name_at = position + _CENTRAL.size
    extra_at = name_at + name_size
    name_bytes, extra = directory[name_at:extra_at], directory[extra_at : extra_at + extra_size]
    name = name_bytes.decode("utf-8")
    if made_by & 255 not in _VERSIONS or made_by >> 8 not in _SYSTEMS or needed not in _VERSIONS:
        raise ValueError(f"the member {name!r} needs another version of zip")
    if external & 0xFFFF or external >> 16 not in _MODES:
        raise ValueError(f"the member {name!r} is not a regular file")
    if method or flags not in _FLAGS:
        raise ValueError(f"the member {name!r} is compressed or encrypted; members are stored")
    size, packed, header_at = _zip64(extra, size, packed, header_at)
    if size != packed:
        raise ValueError(f"the member {name!r} has two sizes, {size} and {packed}")
    if header_at != data_end:
        raise ValueError(f"the member {name!r} does not begin where the one before it ends")
    offset = _check_local(file, header_at, (flags, method, time, date, crc), size, name_bytes)
    return name, Stored(offset, size, crc), extra_at + extra_size


def _check_local(file: BinaryIO, at: int, expected: tuple[int, ...], size: int, name: bytes) -> int:
    """Hold the header before the data against the directory; the offset of the data."""
    fields = _LOCAL.unpack(_read(file, at, _LOCAL.size))
    # The version may differ: the directory also counts how far into the file the member lies.
    signature, needed, common = fields[0], fields[1], fields[2:7]
    packed, plain, name_size, extra_size = fields[7:]
    names_at = at + _LOCAL.size
    if name_size != len(name) or extra_size > _LONGEST_NAME or needed not in _VERSIONS:
        raise ValueError(f"the header of {name.decode()!r} is damaged")
    rest = _read(file, names_at, name_size + extra_size)
    plain, packed, _ = _zip64(rest[name_size:], plain, packed, 0)
    here = (signature, common, rest[:name_size], plain, packed)
    if here != (b"PK\x03\x04", expected, name, size, size):
        raise ValueError(f"the header of {name.decode()!r} contradicts the directory")
    return names_at + len(rest)


def _zip64(extra: bytes, size: int, packed: int, header_at: int) -> tuple[int, int, int]:
    """Replace the fields that say "in the zip64 extra field" by those; no other extra field is accepted."""
    values = [size, packed, header_at]
    missing = [index for index, value in enumerate(values) if value == _IN_ZIP64]
    if not extra and not missing:
        return size, packed, header_at
    head = struct.pack("<2H", _ZIP64_ID, 8 * len(missing))
    if len(extra) != len(head) + 8 * len(missing) or not extra.startswith(head):
        raise ValueError("a member has an extra field")
    for index, value in zip(missing, struct.unpack_from(f"<{len(missing)}Q", extra, 4), strict=True):
        values[index] = value
    return values[0], values[1], values[2]
