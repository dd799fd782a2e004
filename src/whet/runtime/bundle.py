"""One file that runs on a device: manifest, shared library and weights in a zip of stored members.

    lib.so                the compiled code
    weights.safetensors   the weights, in the order of the manifest
    weights.packed        those weights that take less room in another form (whet.runtime.storage), where there are any
    manifest.json         what they are (whet.runtime.manifest), with the checksum and size of the others

Reading checks everything before any code is loaded. The checksums find damage; they are no signature: whoever
can write a bundle can put code into it, so load bundles only from whom you would take a program.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from whet.errors import BundleError
from whet.runtime.container import Stored, read_container
from whet.runtime.dtypes import DTYPES, Array
from whet.runtime.host import check_host, check_library
from whet.runtime.manifest import FORMAT_VERSION, Manifest, Member
from whet.runtime.packing import Packed, pack
from whet.runtime.safetensors import (
    ALIGNMENT,
    HEADER_LIMIT,
    Entry,
    RawTensor,
    aligned_empty,
    chunks,
    decode_header,
)
from whet.runtime.storage import read_header, read_packed
from whet.runtime.storage_header import PackedHeader

LIBRARY: Final = "lib.so"
WEIGHTS: Final = "weights.safetensors"
PACKED: Final = "weights.packed"
MANIFEST: Final = "manifest.json"
_NAMES: Final = frozenset({LIBRARY, WEIGHTS, MANIFEST})
_OPTIONAL: Final = frozenset({PACKED})
_MANIFEST_LIMIT: Final = 64 << 20
_BLOCK: Final = 1 << 20
# The same bytes for the same model: zip can tell no time before 1980.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
# zipfile must know beforehand that a member's size will not fit 32 bits.
_ZIP64_FROM: Final = 1 << 31

_WRITING: Final[Mapping[int, str]] = {
    errno.ENOSPC: "the disk is full: free some space or save to another one",
    errno.EDQUOT: "the disk quota is used up: free some space or save to another disk",
    errno.EFBIG: "the file is larger than the system allows: raise the limit (ulimit -f) or save elsewhere",
    errno.EACCES: "no permission: choose a folder that this user may write to",
    errno.EPERM: "no permission: choose a folder that this user may write to",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOENT: "the folder does not exist: make it first",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another path",
    errno.EISDIR: "it is a folder: give the name of a file in it",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}
_READING: Final[Mapping[int, str]] = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder: give the name of a file in it",
    errno.EACCES: "no permission to read it",
}


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and found sound: nothing of it has been executed."""

    manifest: Manifest
    library: bytes
    weights: Mapping[str, RawTensor]


@dataclass(frozen=True)
class Layout:
    """Where the weights of a bundle lie, and the sizes of its members and of the file in bytes."""

    plain: tuple[Entry, ...]
    packed: PackedHeader | None
    members: Mapping[str, int]
    file: int


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Manifest,
    library_path: str | os.PathLike[str],
    weights: Mapping[str, Array | RawTensor],
    *,
    compress: bool = True,
) -> None:
    """Write the bundle, all or nothing: an older file at `path` stays whole until the new one is on the disk.

    Weights are stored in the smallest exact form (whet.runtime.storage); without `compress` as they lie in memory,
    which a device without the zstandard package reads too.
    `manifest.members` is filled in here. Raises BundleError: the path cannot be written, the disk is full, a
    weight that the manifest names is missing or not of the type it says.
    """
    tensors = {key: item if isinstance(item, RawTensor) else RawTensor.of(item) for key, item in weights.items()}
    _check_weights(manifest, tensors, str(path))
    if not Path(library_path).is_file():
        raise BundleError(f"cannot write {path}: there is no compiled library {library_path}")
    with _io_errors(f"cannot write {path}", _WRITING):
        target = Path(os.path.realpath(path))
        # Replacing a device or a pipe by a file is never what was meant.
        if target.exists() and not target.is_file():
            reason = _WRITING[errno.EISDIR] if target.is_dir() else "it is no regular file: choose another name"
            raise BundleError(f"cannot write {path}: {reason}")
        plain, packed = pack(tensors) if compress else (tensors, None)
        _replace(target, manifest, Path(library_path), plain, packed)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest alone, of a bundle for any device. Raises BundleError for a damaged file or a newer
    format.
    """
    with _reading(path) as (file, members):
        return _manifest(file, members, str(path))


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """How the weights of a bundle, for any device, are stored; none is read. Raises BundleError for a damaged file."""
    with _reading(path) as (file, members):
        _manifest(file, members, str(path))
        weights = members[WEIGHTS]
        file.seek(weights.offset)
        plain = _entries(lambda buffer: _fill(file, buffer, str(path), WEIGHTS), weights.size, str(path))
        packed = None
        if PACKED in members:
            try:
                packed, _ = read_header(file, members[PACKED].offset, members[PACKED].size)
            except ValueError as error:
                raise _damaged(str(path), PACKED, f"is not what it should be ({error})") from error
        size = os.fstat(file.fileno()).st_size
    return Layout(plain, packed, {name: item.size for name, item in members.items()}, size)


def read_bundle(path: str | os.PathLike[str], *, for_this_host: bool = True) -> Bundle:
    """Read and check the whole bundle; load nothing.

    Raises BundleError: not a bundle, truncated, damaged (the member is named), of a newer format, or, unless
    `for_this_host` is False, compiled for another processor or operating system.
    """
    with _reading(path) as (file, members):
        manifest = _manifest(file, members, str(path))
        if for_this_host:
            check_host(manifest.target, str(path))
        library = _read_library(file, members[LIBRARY], manifest.members[LIBRARY], str(path))
        check_library(library, manifest.target, str(path))
        weights = _read_weights(file, members[WEIGHTS], manifest.members[WEIGHTS], str(path))
        if PACKED in members:
            weights |= _read_packed(file, members[PACKED], manifest.members[PACKED], weights, str(path))
    _check_weights(manifest, weights, str(path))
    return Bundle(manifest, library, weights)


def _check_weights(manifest: Manifest, weights: Mapping[str, RawTensor], path: str) -> None:
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
def _io_errors(doing: str, ways_out: Mapping[int, str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = ways_out.get(error.errno or 0, error.strerror or str(error))
        raise BundleError(f"{doing}: {reason}") from error


def _replace(
    target: Path, manifest: Manifest, library: Path, weights: Mapping[str, RawTensor], packed: Packed | None
) -> None:
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    # Opened by hand: the modules for temporary files would leave a file that only its owner can read.
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            _write(file, manifest, library, weights, packed)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where folders can be opened (POSIX)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(
    file: BinaryIO, manifest: Manifest, library: Path, weights: Mapping[str, RawTensor], packed: Packed | None
) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        members = {
            LIBRARY: _add(archive, LIBRARY, _file_blocks(library), library.stat().st_size),
            WEIGHTS: _add(archive, WEIGHTS, chunks(weights), sum(len(piece) for piece in chunks(weights))),
        }
        if packed is not None:
            member = _add(archive, PACKED, packed.pieces(), packed.size)
            members[PACKED] = replace(member, expanded=packed.header.nbytes)
        version = 1 if packed is None else FORMAT_VERSION
        text = json.dumps(replace(manifest, members=members, format_version=version).to_json(), indent=1).encode()
        _add(archive, MANIFEST, (memoryview(text),), len(text))


def _add(archive: zipfile.ZipFile, name: str, pieces: Iterable[memoryview], size: int) -> Member:
    digest, written = hashlib.sha256(), 0
    with archive.open(zipfile.ZipInfo(name, _EPOCH), "w", force_zip64=size >= _ZIP64_FROM) as member:
        for piece in pieces:
            digest.update(piece)
            written += member.write(piece)
    return Member(digest.hexdigest(), written)


def _file_blocks(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield memoryview(block)


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, Mapping[str, Stored]]]:
    with _io_errors(f"cannot read {path}", _READING), open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"cannot read {path}: it is no regular file")
        try:
            members = read_container(file, status.st_size, _NAMES, _OPTIONAL)
        except ValueError as error:
            raise BundleError(f"{path} is not a whole bundle: {error}. Copy or save it again") from error
        yield file, members


def _damaged(path: str, member: str, what: str) -> BundleError:
    return BundleError(f"{path} is damaged: {member} {what}. Copy or save it again")


def _manifest(file: BinaryIO, members: Mapping[str, Stored], path: str) -> Manifest:
    stored = members[MANIFEST]
    if stored.size > _MANIFEST_LIMIT:
        raise _damaged(path, MANIFEST, f"claims {stored.size} bytes")
    text = bytearray(stored.size)
    file.seek(stored.offset)
    _fill(file, memoryview(text), path, MANIFEST)
    if zlib.crc32(text) != stored.crc32:
        raise _damaged(path, MANIFEST, "does not have its checksum")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, MANIFEST, f"is not JSON ({error})") from error
    manifest = Manifest.from_json(value, str(path))
    if set(manifest.members) != members.keys() - {MANIFEST}:
        raise _damaged(path, MANIFEST, f"describes the members {sorted(manifest.members)}")
    for name, member in manifest.members.items():
        if member.size != members[name].size:
            raise _damaged(path, name, f"has {members[name].size} bytes, the manifest says {member.size}")
    return manifest


def _fill(file: BinaryIO, buffer: memoryview, path: str, member: str) -> None:
    """Read exactly that many bytes."""
    done = 0
    while done < len(buffer):
        read = file.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not read:
            raise _damaged(path, member, "ends too early")
        done += read


def _read_library(file: BinaryIO, stored: Stored, member: Member, path: str) -> bytes:
    file.seek(stored.offset)
    library = file.read(stored.size)
    if hashlib.sha256(library).hexdigest() != member.sha256:
        raise _damaged(path, LIBRARY, "does not have its checksum (sha256)")
    return library


def _read_weights(file: BinaryIO, stored: Stored, member: Member, path: str) -> dict[str, RawTensor]:
    """Read every tensor straight to its place in one block of memory: no copy, no file kept open or mapped.

    A mapped file would save this read, but a bundle overwritten in place would then crash the running
    process.
    """
    digest = hashlib.sha256()
    file.seek(stored.offset)

    def take(buffer: memoryview) -> None:
        _fill(file, buffer, path, WEIGHTS)
        digest.update(buffer)

    entries = _entries(take, stored.size, path)
    block = aligned_empty(sum(_padded(entry.end - entry.begin) for entry in entries))
    weights: dict[str, RawTensor] = {}
    position = 0
    for entry in entries:
        place = block[position : position + entry.end - entry.begin]
        take(place.data)
        weights[entry.key] = RawTensor(entry.dtype, place.view(DTYPES[entry.dtype].storage).reshape(entry.shape))
        position += _padded(place.size)
    if digest.hexdigest() != member.sha256:
        raise _damaged(path, WEIGHTS, "does not have its checksum (sha256)")
    return weights


def _entries(take: Callable[[memoryview], None], size: int, path: str) -> tuple[Entry, ...]:
    """Where the tensors of the weights file lie. `take` fills a buffer with what comes next in the file."""
    length = bytearray(min(8, size))
    take(memoryview(length))
    header_size = int.from_bytes(length, "little")
    if len(length) < 8 or header_size > min(size - 8, HEADER_LIMIT):
        raise _damaged(path, WEIGHTS, f"claims a header of {header_size} bytes")
    header = bytearray(header_size)
    take(memoryview(header))
    try:
        return decode_header(bytes(header), size - 8 - header_size)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, WEIGHTS, f"is not a safetensors file ({error})") from error


def _read_packed(
    file: BinaryIO, stored: Stored, member: Member, plain: Mapping[str, RawTensor], path: str
) -> dict[str, RawTensor]:
    """Hold the checksum against the whole member first: what is expanded is what was written."""
    file.seek(stored.offset)
    digest, left = hashlib.sha256(), stored.size
    while left:
        block = file.read(min(left, _BLOCK))
        if not block:
            raise _damaged(path, PACKED, "ends too early")
        digest.update(block)
        left -= len(block)
    if digest.hexdigest() != member.sha256:
        raise _damaged(path, PACKED, "does not have its checksum (sha256)")
    if member.expanded is None:
        raise _damaged(path, MANIFEST, f"does not say what {PACKED} expands to")
    try:
        return read_packed(file, stored.offset, stored.size, member.expanded, plain)
    except (ValueError, RecursionError, MemoryError) as error:
        raise _damaged(path, PACKED, f"is not what it should be ({error})") from error


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
