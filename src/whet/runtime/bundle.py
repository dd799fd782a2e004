"""One file that runs on a device: manifest, shared library and weights in a zip of stored members.

    lib.so                the compiled code
    weights.safetensors   the weights, in the order of the manifest
    weights.packed        those weights that take less room in another form (whet.runtime.storage), where there are any
    manifest.json         what they are (whet.runtime.manifest), with the checksum and size of the others
    signature             over the manifest (whet.runtime.signature), where it is signed

or several of such bundles for as many targets (whet.runtime.fat). A bundle may be encrypted (whet.runtime.sealing).

Reading checks everything before any code is loaded. The checksums find damage and no more: whoever can write a bundle
can put code into it. What a signature is held against is the public keys that the reader trusts.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from whet.errors import BundleError
from whet.runtime.dtypes import DTYPES
from whet.runtime.host import check_host, check_library
from whet.runtime.keys import Access, KeySource
from whet.runtime.manifest import Manifest, Member, TargetSpec
from whet.runtime.parts import (
    LIBRARY,
    MANIFEST,
    PACKED,
    WEIGHTS,
    Part,
    damaged,
    fill,
    opened,
    read_member_bytes,
    unsealed,
)
from whet.runtime.safetensors import ALIGNMENT, HEADER_LIMIT, Entry, RawTensor, aligned_empty, decode_header
from whet.runtime.storage import read_header, read_packed
from whet.runtime.storage_header import PackedHeader

Trusted = KeySource | Sequence[KeySource] | None
"""Public keys of which one must have signed a bundle; None: it need not be signed."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and found sound: nothing of it has been executed."""

    manifest: Manifest
    library: bytes
    weights: Mapping[str, RawTensor]
    encrypted: bool = False


@dataclass(frozen=True)
class Layout:
    """Where the weights of a bundle lie, and the sizes of its members and of the file in bytes."""

    plain: tuple[Entry, ...]
    packed: PackedHeader | None
    members: Mapping[str, int]
    file: int


def read_variants(path: str | os.PathLike[str], *, trusted: Trusted = None) -> list[TargetSpec] | None:
    """The targets of a fat bundle, in its order; None for a bundle of one target. Raises BundleError."""
    with opened(path, Access.of(trusted, None)) as whole:
        return None if whole.targets is None else list(whole.targets)


def read_manifest(
    path: str | os.PathLike[str],
    variant: int | None = None,
    *,
    trusted: Trusted = None,
    key: KeySource | None = None,
) -> Manifest:
    """The manifest alone, of a bundle for any device; of a fat one that of a `variant`, by default the best here.

    Raises what `read_bundle` raises.
    """
    with _reading(path, variant, Access.of(trusted, key)) as (_, manifest):
        return manifest


def read_layout(
    path: str | os.PathLike[str],
    variant: int | None = None,
    *,
    trusted: Trusted = None,
    key: KeySource | None = None,
) -> Layout:
    """How the weights of a bundle, for any device, are stored; none is read. Raises what `read_bundle` raises."""
    with _reading(path, variant, Access.of(trusted, key)) as (part, _):
        weights = part.members[WEIGHTS]
        part.file.seek(weights.offset)
        plain = _entries(lambda buffer: fill(part.file, buffer, part.source, WEIGHTS), weights.size, part.source)
        packed = None
        if PACKED in part.members:
            try:
                packed, _ = read_header(part.file, part.members[PACKED].offset, part.members[PACKED].size)
            except ValueError as error:
                raise damaged(part.source, PACKED, f"is not what it should be ({error})") from error
        return Layout(plain, packed, {name: item.size for name, item in part.members.items()}, part.size)


def read_bundle(
    path: str | os.PathLike[str],
    *,
    for_this_host: bool = True,
    variant: int | None = None,
    trusted: Trusted = None,
    key: KeySource | None = None,
) -> Bundle:
    """Read and check the whole bundle, of a fat one a `variant` (by default the best for this host); load nothing.

    With `trusted` (files with public keys) one of them must have signed it; with `key` (a file with 32 bytes) it must
    be encrypted with that key. Raises BundleError: not a bundle, truncated, damaged (the member is named), of a newer
    format, or, unless `for_this_host` is False, compiled for another processor or operating system; SignatureError,
    DecryptionError, BundleKeyError.
    """
    with _reading(path, variant, Access.of(trusted, key)) as (part, manifest):
        if for_this_host:
            check_host(manifest.target, part.source)
        library = _read_library(part, manifest.members[LIBRARY])
        check_library(library, manifest.target, part.source)
        weights = _read_weights(part, manifest.members[WEIGHTS])
        if PACKED in part.members:
            weights |= _read_packed(part, manifest.members[PACKED], weights)
    check_weights(manifest, weights, str(path))
    return Bundle(manifest, library, weights, part.sealed is not None)


def check_weights(manifest: Manifest, weights: Mapping[str, RawTensor], path: str) -> None:
    """Raise BundleError unless the weights are those that the manifest names."""
    missing = [key for key in (*manifest.weights, *(item.weight for item in manifest.state)) if key not in weights]
    if missing:
        raise BundleError(f"{path}: the weights have no {', '.join(map(repr, missing[:5]))}, which the manifest names")
    for item in manifest.state:
        tensor = weights[item.weight]
        if (tensor.dtype, tensor.array.shape) != (item.dtype, item.shape):
            raise BundleError(
                f"{path}: the initial value of the state {item.name!r} is "
                f"{tensor.dtype}{list(tensor.array.shape)}, the manifest says {item.dtype}{list(item.shape)}"
            )


@contextmanager
def _reading(path: str | os.PathLike[str], variant: int | None, access: Access) -> Iterator[tuple[Part, Manifest]]:
    """One bundle, of a fat one a variant, of an encrypted one what is in it; and its manifest."""
    with opened(path, access) as whole:
        part = unsealed(whole.variant(variant), access.key)
        yield part, part.parsed()


def _read_library(part: Part, member: Member) -> bytes:
    library = bytes(read_member_bytes(part, LIBRARY))
    if hashlib.sha256(library).hexdigest() != member.sha256:
        raise damaged(part.source, LIBRARY, "does not have its checksum (sha256)")
    return library


def _read_weights(part: Part, member: Member) -> dict[str, RawTensor]:
    """Read every tensor straight to its place in one block of memory: no copy, no file kept open or mapped.

    A mapped file would save this read, but a bundle overwritten in place would then crash the running
    process.
    """
    digest = hashlib.sha256()
    part.file.seek(part.members[WEIGHTS].offset)

    def take(buffer: memoryview) -> None:
        fill(part.file, buffer, part.source, WEIGHTS)
        digest.update(buffer)

    entries = _entries(take, part.members[WEIGHTS].size, part.source)
    block = aligned_empty(sum(_padded(entry.end - entry.begin) for entry in entries))
    weights: dict[str, RawTensor] = {}
    position = 0
    for entry in entries:
        place = block[position : position + entry.end - entry.begin]
        take(place.data)
        weights[entry.key] = RawTensor(entry.dtype, place.view(DTYPES[entry.dtype].storage).reshape(entry.shape))
        position += _padded(place.size)
    if digest.hexdigest() != member.sha256:
        raise damaged(part.source, WEIGHTS, "does not have its checksum (sha256)")
    return weights


def _entries(take: Callable[[memoryview], None], size: int, path: str) -> tuple[Entry, ...]:
    """Where the tensors of the weights file lie. `take` fills a buffer with what comes next in the file."""
    length = bytearray(min(8, size))
    take(memoryview(length))
    header_size = int.from_bytes(length, "little")
    if len(length) < 8 or header_size > min(size - 8, HEADER_LIMIT):
        raise damaged(path, WEIGHTS, f"claims a header of {header_size} bytes")
    header = bytearray(header_size)
    take(memoryview(header))
    try:
        return decode_header(bytes(header), size - 8 - header_size)
    except (ValueError, RecursionError) as error:
        raise damaged(path, WEIGHTS, f"is not a safetensors file ({error})") from error


def _read_packed(part: Part, member: Member, plain: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """The member is taken into memory, so that what is expanded is what has the checksum."""
    data = read_member_bytes(part, PACKED)
    if hashlib.sha256(data).hexdigest() != member.sha256:
        raise damaged(part.source, PACKED, "does not have its checksum (sha256)")
    if member.expanded is None:
        raise damaged(part.source, MANIFEST, f"does not say what {PACKED} expands to")
    try:
        return read_packed(io.BytesIO(data), 0, len(data), member.expanded, plain)
    except (ValueError, RecursionError, MemoryError) as error:
        raise damaged(part.source, PACKED, f"is not what it should be ({error})") from error


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
