"""Choosing how each weight is stored: every exact form that could pay is made, and the smallest is kept.

See `whet.runtime.storage` for the forms, and for the bytes that come out.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from whet.runtime.dtypes import Array
from whet.runtime.safetensors import RawTensor
from whet.runtime.storage import WINDOW_LOG, zstandard
from whet.runtime.storage_header import (
    CODEBOOK_LIMIT,
    PLAIN,
    ZSTD,
    Block,
    PackedHeader,
    PackedTensor,
    symbols_size,
)

# A tensor that shrinks by less stays as it is: it is read faster so, and by other tools.
_WORTHWHILE: Final = 0.97
# About what naming a tensor in the header takes, compressed.
_ENTRY_BYTES: Final = 40
# What a block more takes in the header.
_BLOCK_BYTES: Final = 8
# Streams up to this size share blocks: a block has a head, and a table of code lengths.
_POOLED: Final = 1 << 16
_TWIN_FROM: Final = 64
# Fewer zeros than this are not worth positions.
_FEWEST_ZEROS: Final = 0.1
_SAMPLE: Final = 1 << 16
_STRONG, _QUICK = 19, 3
_STRONG_UP_TO: Final = 4 << 20
_STRONGER: Final = 0.99
_GAP_BITS: Final = (3, 4, 5, 6, 7)


@dataclass(frozen=True)
class Packed:
    """A packed member: its header, and the bytes of each of its blocks."""

    header: PackedHeader
    blocks: tuple[bytes, ...]

    def pieces(self) -> Iterator[memoryview]:
        """The member, piece by piece."""
        text = self.header.to_json()
        stored = _compressor(len(text), _STRONG).compress(text)
        yield memoryview(len(stored).to_bytes(8, "little") + len(text).to_bytes(8, "little"))
        yield memoryview(stored)
        for block in self.blocks:
            yield memoryview(block)

    @property
    def size(self) -> int:
        """Bytes of the member."""
        return sum(len(piece) for piece in self.pieces())


@dataclass(frozen=True)
class _Candidate:
    """One form of one tensor, with the bytes of its streams."""

    tensor: PackedTensor
    streams: tuple[Array, ...]

    @cached_property
    def cost(self) -> int:
        """Bytes that it takes, about."""
        return _ENTRY_BYTES + sum(len(_squeezed(stream)[1]) for stream in self.streams)


def pack(tensors: Mapping[str, RawTensor]) -> tuple[dict[str, RawTensor], Packed | None]:
    """(tensors that stay as they are, the packed member or None where nothing is worth packing)."""
    plain: dict[str, RawTensor] = {}
    chosen: list[_Candidate] = []
    twins: list[_Candidate] = []
    seen: dict[tuple[Any, ...], str] = {}
    for key, raw in tensors.items():
        first = seen.setdefault(_identity(key, raw), key)
        if first != key:
            twins.append(_Candidate(PackedTensor(key, raw.dtype, raw.array.shape, same=first), ()))
            continue
        best = _smallest(key, raw)
        if best is None:
            plain[key] = raw
        else:
            chosen.append(best)
    if not chosen and not twins:
        return plain, None
    return plain, _assemble(chosen, twins)


def _identity(key: str, raw: RawTensor) -> tuple[Any, ...]:
    if raw.array.nbytes < _TWIN_FROM:
        return (key,)
    digest = hashlib.sha256(np.ascontiguousarray(raw.array).reshape(-1).view(np.uint8).data).digest()
    return (raw.dtype, raw.array.shape, digest)


def _smallest(key: str, raw: RawTensor) -> _Candidate | None:
    """The smallest form, or None where the tensor had better stay as it is."""
    if not raw.array.nbytes:
        return None
    best = min(_candidates(key, raw), key=lambda candidate: candidate.cost)
    return best if best.cost < _WORTHWHILE * raw.array.nbytes else None


def _candidates(key: str, raw: RawTensor) -> Iterator[_Candidate]:
    tensor = PackedTensor(key, raw.dtype, raw.array.shape, count=raw.array.size)
    words = np.ascontiguousarray(raw.array).reshape(-1).view(tensor.word)
    yield from _valued(tensor, words, ())
    kept = words != 0
    count = int(np.count_nonzero(kept))
    if count > (1 - _FEWEST_ZEROS) * words.size:
        return
    values = words[kept]
    for where, stream in _positions(tensor, kept):
        yield from _valued(replace(where, count=count), values, (stream,))


def _positions(tensor: PackedTensor, kept: Array) -> Iterator[tuple[PackedTensor, Array]]:
    """Ways to say where the values are: each with the smallest stream of its kind."""
    yield replace(tensor, positions="bitmap", count=0), np.packbits(kept, bitorder="little")
    passed = np.diff(np.flatnonzero(kept), prepend=-1) - 1
    sizes = {bits: symbols_size(_gap_count(passed, bits), bits) for bits in _GAP_BITS}
    for bits in {8, min(sizes, key=sizes.__getitem__)}:
        symbols = _gap_symbols(passed, bits)
        fields = replace(tensor, positions="gaps", count=0, gaps=len(symbols), gap_bits=bits)
        yield fields, _bit_packed(symbols, bits)


def _gap_count(passed: Array, bits: int) -> int:
    return len(passed) + int((passed // ((1 << bits) - 1)).sum())


def _gap_symbols(passed: Array, bits: int) -> Array:
    """A symbol for each value, behind as many of the largest one as it takes to get near it."""
    escape = (1 << bits) - 1
    symbols = np.full(_gap_count(passed, bits), escape, np.uint8)
    symbols[np.cumsum(passed // escape + 1) - 1] = passed % escape
    return symbols


def _bit_packed(symbols: Array, bits: int) -> Array:
    """Symbols at `bits` bits each, lowest bit first."""
    if bits == 8:
        return symbols
    step = 1 << 20
    parts = [
        np.packbits(
            np.unpackbits(symbols[first : first + step, None], axis=1, count=bits, bitorder="little"),
            bitorder="little",
        )
        for first in range(0, len(symbols), step)
    ]
    return np.concatenate(parts) if parts else symbols


def _valued(tensor: PackedTensor, values: Array, where: tuple[Array, ...]) -> Iterator[_Candidate]:
    """The forms of the values: as they are, or as indices of a codebook, one a byte or packed."""
    yield _Candidate(tensor, (*where, values.view(np.uint8)))
    codebook = _distinct(values)
    if codebook is None:
        return
    indices = np.searchsorted(codebook, values).astype(np.uint8)
    for bits in {8, max(1, (len(codebook) - 1).bit_length())}:
        streams = (*where, codebook.view(np.uint8), _bit_packed(indices, bits))
        yield _Candidate(replace(tensor, entries=len(codebook), index_bits=bits), streams)


def _distinct(words: Array) -> Array | None:
    """The distinct words in order, None where there are none, or more than a codebook may have."""
    if not words.size or len(np.unique(words[:_SAMPLE])) > CODEBOOK_LIMIT:
        return None
    found = np.unique(words)
    return found if len(found) <= CODEBOOK_LIMIT else None


def _assemble(chosen: Sequence[_Candidate], twins: Sequence[_Candidate]) -> Packed:
    """Streams into blocks, in the order in which they are read; small ones of one kind together where that pays."""
    contents: list[list[Array]] = []
    pools: dict[str, int] = {}
    pooled = _pooled_kinds(chosen)
    tensors: list[PackedTensor] = []
    for item in chosen:
        numbers = []
        for (kind, size), stream in zip(item.tensor.streams, item.streams, strict=True):
            shares = kind in pooled and size <= _POOLED
            number = pools.setdefault(kind, len(contents)) if shares else len(contents)
            if number == len(contents):
                contents.append([])
            contents[number].append(stream)
            numbers.append(number)
        tensors.append(replace(item.tensor, blocks=tuple(numbers)))
    tensors += [item.tensor for item in twins]
    blocks, stored = [], []
    for streams in contents:
        data = np.concatenate(streams)
        method, squeezed = _squeezed(data, _STRONG_UP_TO)
        blocks.append(Block(method, len(squeezed), data.size))
        stored.append(squeezed)
    return Packed(PackedHeader(tuple(tensors), tuple(blocks)), tuple(stored))


def _pooled_kinds(chosen: Sequence[_Candidate]) -> frozenset[str]:
    """Kinds whose small streams take less in one block than each in its own."""
    small: defaultdict[str, list[Array]] = defaultdict(list)
    for item in chosen:
        for (kind, size), stream in zip(item.tensor.streams, item.streams, strict=True):
            if size <= _POOLED:
                small[kind].append(stream)
    return frozenset(kind for kind, streams in small.items() if _shares_well(streams))


def _shares_well(streams: Sequence[Array]) -> bool:
    apart = sum(len(_squeezed(stream)[1]) + _BLOCK_BYTES for stream in streams)
    return len(_squeezed(np.concatenate(streams))[1]) <= apart


def _squeezed(stream: Array, strong_up_to: int = _POOLED) -> tuple[str, bytes]:
    """Method and bytes of a block: compressed where that makes it smaller."""
    plain = stream.tobytes()
    squeezed = _compressed(plain, _level(plain, strong_up_to))
    return (ZSTD, squeezed) if len(squeezed) < len(plain) else (PLAIN, plain)


def _level(plain: bytes, strong_up_to: int) -> int:
    """The strong level for small streams, and for larger ones (to a limit) where it gains anything on a part."""
    if len(plain) <= _POOLED:
        return _STRONG
    if len(plain) > strong_up_to:
        return _QUICK
    strong, quick = (len(_compressed(plain[:_POOLED], level)) for level in (_STRONG, _QUICK))
    return _STRONG if strong < _STRONGER * quick else _QUICK


def _compressed(plain: bytes, level: int) -> bytes:
    squeezed: bytes = _compressor(len(plain), level).compress(plain)
    return squeezed


def _compressor(size: int, level: int) -> Any:
    library = zstandard()
    parameters = library.ZstdCompressionParameters.from_level(level, source_size=size, write_content_size=True)
    if parameters.window_log > WINDOW_LOG:
        parameters = library.ZstdCompressionParameters.from_level(level, source_size=size, window_log=WINDOW_LOG)
    return library.ZstdCompressor(compression_params=parameters)
