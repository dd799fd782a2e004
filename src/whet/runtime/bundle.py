"""One file that runs on a device: manifest, shared library and weights in a zip of stored members.

    lib.so                the compiled code
    weights.safetensors   the weights, in the order of the manifest
    weights.packed        those weights that take less room in another form (whet.runtime.storage), where there are any
    manifest.json         what they are (whet.runtime.manifest), with the checksum and size of the others

or several of such bundles for as many targets (whet.runtime.fat).

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from whet.errors import BundleError
from whet.runtime.container import Stored, read_container
from whet.runtime.dtypes import DTYPES, Array
from whet.runtime.fat import MOST_VARIANTS, VARIANTS, Slice, best_variant, decode_index, encode_index
from whet.runtime.host import check_host, check_library
from whet.runtime.manifest import FORMAT_VERSION, Manifest, Member, TargetSpec
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
        _write_whole(target, lambda file: _write(file, manifest, Path(library_path), plain, packed))


def join_bundles(path: str | os.PathLike[str], bundles: Sequence[str | os.PathLike[str]]) -> None:
    """Write one fat bundle of several that hold the same model, each for a processor of its own.

    Raises BundleError: a bundle cannot be read, is fat itself or for an accelerator, they are not of one model, two are
    for one target, or the path cannot be written.
    """
    manifests = []
    for item in bundles:
        if read_variants(item) is not None:
            raise BundleError(f"{item} is fat itself: join the bundles that it was made of")
        manifests.append(read_bundle(item, for_this_host=False).manifest)
    _check_joinable([str(item) for item in bundles], manifests)
    with _io_errors(f"cannot write {path}", _WRITING):
        _write_whole(Path(os.path.realpath(path)), lambda file: _join(file, manifests, list(map(Path, bundles))))


def _check_joinable(names: Sequence[str], manifests: Sequence[Manifest]) -> None:
    if not 2 <= len(manifests) <= MOST_VARIANTS:
        raise BundleError(f"{len(manifests)} bundle(s) were given: a fat bundle has 2 to {MOST_VARIANTS}")
    for name, manifest in zip(names, manifests, strict=True):
        if manifest.target.device != "cpu":
            raise BundleError(f"{name} is for {manifest.target.device}: a fat bundle chooses between processors")
        for field in ("inputs", "outputs", "dimensions", "input_structure", "output_structure", "parameters"):
            if getattr(manifest, field) != getattr(manifests[0], field):
                raise BundleError(f"{name} and {names[0]} have other {field}: they are not one model")
        if [(item.name, item.shape) for item in manifest.state] != [
            (item.name, item.shape) for item in manifests[0].state
        ]:
            raise BundleError(f"{name} and {names[0]} have other states: they are not one model")
    targets = [manifest.target.name for manifest in manifests]
    if len(set(targets)) < len(targets):
        raise BundleError(f"two bundles are for one target: {', '.join(sorted(targets))}")


def _join(file: BinaryIO, manifests: Sequence[Manifest], bundles: Sequence[Path]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, item in zip(VARIANTS, bundles, strict=False):
            _add(archive, name, _file_blocks(item), item.stat().st_size)
        text = encode_index([manifest.target for manifest in manifests])
        _add(archive, MANIFEST, (memoryview(text),), len(text))


def read_variants(path: str | os.PathLike[str]) -> list[TargetSpec] | None:
    """The targets of a fat bundle, in its order; None for a bundle of one target. Raises BundleError."""
    with _opened(path) as (file, members):
        return _index(file, members, str(path)) if LIBRARY not in members else None


def read_manifest(path: str | os.PathLike[str], variant: int | None = None) -> Manifest:
    """The manifest alone, of a bundle for any device; of a fat one that of a `variant`, by default the best here.

    Raises BundleError for a damaged file or a newer format, and for a fat bundle of which nothing runs here.
    """
    with _reading(path, variant) as (file, members):
        return _manifest(file, members, str(path))


def read_layout(path: str | os.PathLike[str], variant: int | None = None) -> Layout:
    """How the weights of a bundle, for any device, are stored; none is read. Raises BundleError for a damaged file."""
    with _reading(path, variant) as (file, members):
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
        size = file.seek(0, os.SEEK_END)
    return Layout(plain, packed, {name: item.size for name, item in members.items()}, size)


def read_bundle(path: str | os.PathLike[str], *, for_this_host: bool = True, variant: int | None = None) -> Bundle:
    """Read and check the whole bundle, of a fat one a `variant` (by default the best for this host); load nothing.

    Raises BundleError: not a bundle, truncated, damaged (the member is named), of a newer format, or, unless
    `for_this_host` is False, compiled for another processor or operating system.
    """
    with _reading(path, variant) as (file, members):
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


def _write_whole(target: Path, write: Callable[[BinaryIO], None]) -> None:
    """A file that is there whole or not at all."""
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    # Opened by hand: the modules for temporary files would leave a file that only its owner can read.
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            write(file)
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
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, Mapping[str, Stored]]]:
    """The file and its members: those of one bundle, or an index and variants."""
    with _io_errors(f"cannot read {path}", _READING), open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"cannot read {path}: it is no regular file")
        with _whole(path):
            members = read_container(file, status.st_size, frozenset({MANIFEST}), _NAMES | _OPTIONAL | set(VARIANTS))
            fat = members.keys() & set(VARIANTS)
            if fat and members.keys() - fat != {MANIFEST}:
                raise ValueError("it has members of one bundle and others of several")
            missing = () if fat else sorted(_NAMES - members.keys())
            if missing:
                raise ValueError(f"it has no member {missing[0]!r}")
        yield file, members


@contextmanager
def _whole(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise BundleError(f"{path} is not a whole bundle: {error}. Copy or save it again") from error


@contextmanager
def _reading(
    path: str | os.PathLike[str], variant: int | None = None
) -> Iterator[tuple[BinaryIO, Mapping[str, Stored]]]:
    """The file and members of one bundle; of a fat one, those of a variant."""
    with _opened(path) as (file, members):
        if LIBRARY in members:
            yield file, members
            return
        targets = _index(file, members, str(path))
        number = best_variant(targets, str(path)) if variant is None else variant
        stored = members[VARIANTS[number]]
        part: Any = Slice(file, stored.offset, stored.size)
        with _whole(f"{path}, variant {targets[number].name!r},"):
            inside = read_container(part, stored.size, _NAMES, _OPTIONAL)
        found = _manifest(part, inside, str(path)).target
        if found != targets[number]:
            raise _damaged(str(path), VARIANTS[number], f"is for {found.name!r}, which its index does not say")
        yield part, inside


def _index(file: BinaryIO, members: Mapping[str, Stored], path: str) -> list[TargetSpec]:
    variants = [name for name in members if name != MANIFEST]
    return decode_index(_manifest_json(file, members[MANIFEST], path), variants, path)


def _damaged(path: str, member: str, what: str) -> BundleError:
    return BundleError(f"{path} is damaged: {member} {what}. Copy or save it again")


def _manifest_json(file: BinaryIO, stored: Stored, path: str) -> Any:
    if stored.size > _MANIFEST_LIMIT:
        raise _damaged(path, MANIFEST, f"claims {stored.size} bytes")
    text = bytearray(stored.size)
    file.seek(stored.offset)
    _fill(file, memoryview(text), path, MANIFEST)
    if zlib.crc32(text) != stored.crc32:
        raise _damaged(path, MANIFEST, "does not have its checksum")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, MANIFEST, f"is not JSON ({error})") from error


def _manifest(file: BinaryIO, members: Mapping[str, Stored], path: str) -> Manifest:
    manifest = Manifest.from_json(_manifest_json(file, members[MANIFEST], path), str(path))
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
