"""Weights in their stored form, expanded at load to exactly the same bytes: the member `weights.packed` of a bundle.

A tensor is where its values lie, and the values, bit patterns both (-0.0 and every NaN are values like others):

positions   dense: everywhere; bitmap: one bit an element; gaps: the elements that are passed over before each value,
            the largest symbol standing for as many elements without a value (Han et al., Deep Compression, ICLR 2016,
            whose fillers carry a zero); what has no value is 0
values      raw: as in memory; codebook: the distinct ones, and an index each

Gaps and indices are symbols of 1 to 8 bits; those of 8 take a byte each, others are packed, lowest bit first. Each of
these streams is a part of one block, and a block is stored as it is or as one zstandard frame. Small streams of one
kind share a block.

    8 + 8 bytes   stored and expanded size of the header, little-endian
    header        JSON {"tensors": [...], "blocks": [[method, stored size, size], ...]} in a zstandard frame
    the rest      the blocks, without holes

Every size is declared and held against all others before memory is taken for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final

import numpy as np

from whet.errors import TargetError
from whet.runtime.dtypes import DTYPES, Array
from whet.runtime.safetensors import ALIGNMENT, RawTensor, aligned_empty
from whet.runtime.storage_header import ZSTD, PackedHeader, PackedTensor, parse_header, symbols_size

HEADER_SIZES: Final = 16
HEADER_LIMIT: Final = 64 << 20
WINDOW_LOG: Final = 20
"""A frame may look back 1 MiB, so that a decoder takes no more than that beside its result."""
# Symbols that are expanded at a time: what expansion takes beside its result. A multiple of 8.
_CHUNK: Final = 1 << 20

Read = Callable[[int, int], Array]
"""(first, end) -> those symbols or values."""


def zstandard() -> Any:
    """The zstandard package. Raises TargetError where it is missing."""
    try:
        import zstandard
    except ImportError as error:
        raise TargetError(
            "the weights of this bundle are compressed, and the package zstandard is not installed here: "
            "pip install zstandard"
        ) from error
    return zstandard


def read_packed(
    file: BinaryIO, offset: int, size: int, expanded: int, plain: Mapping[str, RawTensor]
) -> dict[str, RawTensor]:
    """The tensors of the packed member at file[offset : offset + size]; `same` may name one of `plain`.

    `expanded` is what the manifest says that they take in memory. Raises ValueError for anything that disagrees.
    """
    header, start = read_header(file, offset, size)
    if header.nbytes != expanded:
        raise ValueError(f"claims {header.nbytes} bytes of weights, the manifest says {expanded}")
    if expanded > _memory():
        raise ValueError(f"claims {expanded} bytes of weights; this device has {_memory()} bytes of memory")
    blocks = _Blocks(file, start, header)
    room = aligned_empty(sum(_padded(tensor.nbytes) for tensor in header.tensors if not tensor.same))
    found: dict[str, RawTensor] = {}
    position = 0
    for tensor in header.tensors:
        if tensor.same:
            continue
        place = room[position : position + tensor.nbytes]
        _fill(tensor, blocks, place)
        found[tensor.key] = RawTensor(tensor.dtype, place.view(DTYPES[tensor.dtype].storage).reshape(tensor.shape))
        position += _padded(tensor.nbytes)
    for tensor in header.tensors:
        if tensor.same:
            found[tensor.key] = _twin(tensor, found, plain)
    return found


def read_header(file: BinaryIO, offset: int, size: int) -> tuple[PackedHeader, int]:
    """The header of a packed member, and where its blocks begin. Raises ValueError."""
    file.seek(offset)
    sizes = file.read(min(HEADER_SIZES, size))
    stored, length = int.from_bytes(sizes[:8], "little"), int.from_bytes(sizes[8:], "little")
    if len(sizes) < HEADER_SIZES or stored > size - HEADER_SIZES or length > HEADER_LIMIT:
        raise ValueError(f"claims a header of {stored} bytes for {length}")
    text = np.empty(length, np.uint8)
    _decompress(file.read(stored), text)
    return parse_header(text.tobytes(), size - HEADER_SIZES - stored), offset + HEADER_SIZES + stored


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _twin(tensor: PackedTensor, found: Mapping[str, RawTensor], plain: Mapping[str, RawTensor]) -> RawTensor:
    twin = found.get(tensor.same) or plain.get(tensor.same)
    if twin is None or (twin.dtype, twin.array.shape) != (tensor.dtype, tensor.shape):
        raise ValueError(f"{tensor.key!r} is said to be the same as {tensor.same!r}")
    return twin


class _Blocks:
    """Expands a block when a stream of it is asked for, and lets go of it after the last one."""

    def __init__(self, file: BinaryIO, start: int, header: PackedHeader) -> None:
        self._file = file
        self._blocks = header.blocks
        self._starts = [start]
        for block in header.blocks:
            self._starts.append(self._starts[-1] + block.stored)
        self._held: dict[int, Array] = {}
        self._taken = [0] * len(header.blocks)

    def whole(self, number: int, place: Array) -> None:
        """Expand a block that is one stream straight to its place."""
        block = self._blocks[number]
        self._file.seek(self._starts[number])
        data = self._file.read(block.stored)
        if len(data) != block.stored:
            raise ValueError("ends too early")
        if block.method == ZSTD:
            _decompress(data, place)
        else:
            place[...] = np.frombuffer(data, np.uint8)

    def take(self, number: int, size: int) -> Array:
        """The next `size` bytes of a block."""
        if not size:
            return np.empty(0, np.uint8)
        if number not in self._held:
            self._held[number] = np.empty(self._blocks[number].size, np.uint8)
            self.whole(number, self._held[number])
        first = self._taken[number]
        self._taken[number] = first + size
        stream = self._held[number][first : first + size]
        if self._taken[number] == self._blocks[number].size:
            del self._held[number]
        return stream

    def size(self, number: int) -> int:
        """Bytes of a block, expanded."""
        return self._blocks[number].size


def _decompress(data: bytes, place: Array) -> None:
    """Expand one frame to exactly the bytes of `place`. Raises ValueError for another size and for damage."""
    library = zstandard()
    decoder = library.ZstdDecompressor(max_window_size=1 << WINDOW_LOG)
    try:
        with decoder.stream_reader(data) as reader:
            done = 0
            while done < place.size:
                read = reader.readinto(place[done:].data)
                if not read:
                    raise ValueError(f"a block has {done} bytes in place of {place.size}")
                done += read
            if reader.read(1):
                raise ValueError(f"a block has more than its {place.size} bytes")
    except library.ZstdError as error:
        raise ValueError(f"a block is not a zstandard frame ({error})") from error


def _fill(tensor: PackedTensor, blocks: _Blocks, place: Array) -> None:
    """Write the bytes of one tensor."""
    streams = tensor.streams
    if len(streams) == 1 and blocks.size(tensor.blocks[0]) == tensor.nbytes:
        blocks.whole(tensor.blocks[0], place)
        return
    parts = [blocks.take(number, size) for number, (_, size) in zip(tensor.blocks, streams, strict=True)]
    words = place.view(tensor.word)
    where = [] if tensor.positions == "dense" else [parts.pop(0)]
    _PLACE[tensor.positions](tensor, *where, _values(tensor, parts), words)


def _values(tensor: PackedTensor, parts: Sequence[Array]) -> Read:
    if not tensor.entries:
        values = parts[0].view(tensor.word)
        return lambda first, end: values[first:end]
    codebook, indices = parts[0].view(tensor.word), parts[1]

    def read(first: int, end: int) -> Array:
        chosen = _symbols(indices, tensor.index_bits, first, end)
        if chosen.size and int(chosen.max()) >= tensor.entries:
            raise ValueError(f"{tensor.key!r} has an index beyond its codebook")
        return codebook[chosen]

    return read


def _symbols(stream: Array, bits: int, first: int, end: int) -> Array:
    """Symbols first..end of a stream."""
    if bits == 8:
        return stream[first:end]
    skipped = first % 8
    start = (first - skipped) * bits // 8
    count = end - first + skipped
    flat = np.unpackbits(stream[start : start + symbols_size(count, bits)], count=count * bits, bitorder="little")
    return np.packbits(flat.reshape(count, bits), axis=1, bitorder="little").reshape(-1)[skipped:]


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK))


def _place_dense(tensor: PackedTensor, values: Read, words: Array) -> None:
    for first, end in _chunks(tensor.numel):
        words[first:end] = values(first, end)


def _place_by_bitmap(tensor: PackedTensor, bitmap: Array, values: Read, words: Array) -> None:
    words[...] = 0
    done = 0
    for first, end in _chunks(tensor.numel):
        kept = _symbols(bitmap, 1, first, end).view(np.bool_)
        count = int(np.count_nonzero(kept))
        _check_values(tensor, done + count)
        words[first:end][kept] = values(done, done + count)
        done += count
    _check_values(tensor, done, all_of_them=True)


def _place_by_gaps(tensor: PackedTensor, gaps: Array, values: Read, words: Array) -> None:
    words[...] = 0
    escape = (1 << tensor.gap_bits) - 1
    done = position = 0
    for first, end in _chunks(tensor.gaps):
        symbols = _symbols(gaps, tensor.gap_bits, first, end)
        kept = symbols != escape
        ends = np.cumsum(symbols + kept.astype(np.int64)) + position
        position = int(ends[-1])
        places = ends[kept] - 1
        _check_values(tensor, done + len(places))
        if len(places) and int(places[-1]) >= tensor.numel:
            raise ValueError(f"{tensor.key!r} has a value beyond its end")
        words[places] = values(done, done + len(places))
        done += len(places)
    _check_values(tensor, done, all_of_them=True)


def _check_values(tensor: PackedTensor, count: int, all_of_them: bool = False) -> None:
    if count > tensor.count or (all_of_them and count != tensor.count):
        raise ValueError(f"{tensor.key!r} has {tensor.count} values for other positions")


_PLACE: Final[Mapping[str, Callable[..., None]]] = {
    "dense": _place_dense,
    "bitmap": _place_by_bitmap,
    "gaps": _place_by_gaps,
}
