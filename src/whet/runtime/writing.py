"""Writing bundles (whet.runtime.bundle): all or nothing, signed and encrypted where keys are given."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from whet.errors import BundleError
from whet.runtime.bundle import check_weights, read_bundle, read_variants
from whet.runtime.container import Stored
from whet.runtime.dtypes import Array
from whet.runtime.fat import MOST_VARIANTS, VARIANTS, encode_index
from whet.runtime.files import WRITING, io_errors, write_whole
from whet.runtime.keys import Access, KeySource, PublicKey, SecretKey, SigningKey, read_secret_key, read_signing_key
from whet.runtime.manifest import FORMAT_VERSION, Manifest, Member
from whet.runtime.packing import Packed, pack
from whet.runtime.parts import LIBRARY, MANIFEST, PACKED, WEIGHTS, Whole, opened
from whet.runtime.safetensors import RawTensor, chunks
from whet.runtime.sealing import SALT_BYTES, SEALED_MANIFEST, MemberCipher, SealHeader, seal, sealed_size
from whet.runtime.signature import SIGNATURE, make_signature
from whet.runtime.verifying import verify_bundle

_BLOCK: Final = 1 << 20
# The same bytes for the same model: zip can tell no time before 1980.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
# zipfile must know beforehand that a member's size will not fit 32 bits.
_ZIP64_FROM: Final = 1 << 31


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Manifest,
    library_path: str | os.PathLike[str],
    weights: Mapping[str, Array | RawTensor],
    *,
    compress: bool = True,
    sign: KeySource | None = None,
    encrypt: KeySource | None = None,
) -> None:
    """Write the bundle, all or nothing: an older file at `path` stays whole until the new one is on the disk.

    Weights are stored in the smallest exact form (whet.runtime.storage); without `compress` as they lie in memory,
    which a device without the zstandard package reads too. `sign` is a private key (PEM), `encrypt` a key of 32 bytes,
    each a file or its contents; what is signed is the encrypted form.
    `manifest.members` is filled in here. Raises BundleError: the path cannot be written, the disk is full, a
    weight that the manifest names is missing or not of the type it says; BundleKeyError.
    """
    signer, secret = _keys(sign, encrypt)
    tensors = {key: item if isinstance(item, RawTensor) else RawTensor.of(item) for key, item in weights.items()}
    check_weights(manifest, tensors, str(path))
    if not Path(library_path).is_file():
        raise BundleError(f"cannot write {path}: there is no compiled library {library_path}")
    with io_errors(f"cannot write {path}", WRITING):
        target = Path(os.path.realpath(path))
        # Replacing a device or a pipe by a file is never what was meant.
        if target.exists() and not target.is_file():
            reason = WRITING[errno.EISDIR] if target.is_dir() else "it is no regular file: choose another name"
            raise BundleError(f"cannot write {path}: {reason}")
        plain, packed = pack(tensors) if compress else (tensors, None)
        write_whole(target, lambda file: _write(file, manifest, Path(library_path), plain, packed, signer, secret))


def join_bundles(
    path: str | os.PathLike[str],
    bundles: Sequence[str | os.PathLike[str]],
    *,
    sign: KeySource | None = None,
    key: KeySource | None = None,
) -> None:
    """Write one fat bundle of several that hold the same model, each for a processor of its own.

    `key` is what they are encrypted with, all or none of them. Signatures of theirs count for nothing in the fat
    bundle: `sign` signs all of it. Raises BundleError: a bundle cannot be read, is fat itself or for an accelerator,
    they are not of one model, two are for one target, or the path cannot be written; DecryptionError, BundleKeyError.
    """
    signer, _ = _keys(sign, None)
    manifests, texts = [], []
    for item in bundles:
        if read_variants(item) is not None:
            raise BundleError(f"{item} is fat itself: join the bundles that it was made of")
        manifests.append(read_bundle(item, for_this_host=False, key=key).manifest)
        with opened(item, Access()) as whole:
            texts.append(whole.part.manifest)
    _check_joinable([str(item) for item in bundles], manifests)
    index = encode_index([manifest.target for manifest in manifests])

    def write(file: BinaryIO) -> None:
        signed = {MANIFEST: index, **{f"{name}/{MANIFEST}": text for name, text in zip(VARIANTS, texts, strict=False)}}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, item in zip(VARIANTS, map(Path, bundles), strict=False):
                _add(archive, name, _file_blocks(item), item.stat().st_size)
            _add(archive, MANIFEST, (memoryview(index),), len(index))
            _add_signature(archive, signer, signed)

    with io_errors(f"cannot write {path}", WRITING):
        write_whole(Path(os.path.realpath(path)), write)


def sign_bundle(
    path: str | os.PathLike[str], sign: KeySource, *, out: str | os.PathLike[str] | None = None
) -> PublicKey:
    """Sign a bundle that was saved before, of one target or fat, encrypted or not, in place or into the file `out`.

    A signature that it has is replaced. The checksums of all that is signed are checked first. Returns the public key.
    Raises BundleError where the bundle is not whole or the path cannot be written, BundleKeyError.
    """
    signer = read_signing_key(sign)
    verify_bundle(path)
    with opened(path, Access()) as whole, io_errors(f"cannot write {out or path}", WRITING):
        write_whole(Path(os.path.realpath(out or path)), lambda file: _copy(file, whole, signer))
    return signer.public


def _keys(sign: KeySource | None, encrypt: KeySource | None) -> tuple[SigningKey | None, SecretKey | None]:
    return None if sign is None else read_signing_key(sign), None if encrypt is None else read_secret_key(encrypt)


def _check_joinable(names: Sequence[str], manifests: Sequence[Manifest]) -> None:
    if not 2 <= len(manifests) <= MOST_VARIANTS:
        raise BundleError(f"{len(manifests)} bundle(s) were given: a fat bundle has 2 to {MOST_VARIANTS}")
    for name, manifest in zip(names, manifests, strict=True):
        if manifest.target.device != "cpu":
            raise BundleError(f"{name} is for {manifest.target.device}: a fat bundle chooses between processors")
        for shared in ("inputs", "outputs", "dimensions", "input_structure", "output_structure", "parameters"):
            if getattr(manifest, shared) != getattr(manifests[0], shared):
                raise BundleError(f"{name} and {names[0]} have other {shared}: they are not one model")
        if [(item.name, item.shape) for item in manifest.state] != [
            (item.name, item.shape) for item in manifests[0].state
        ]:
            raise BundleError(f"{name} and {names[0]} have other states: they are not one model")
    targets = [manifest.target.name for manifest in manifests]
    if len(set(targets)) < len(targets):
        raise BundleError(f"two bundles are for one target: {', '.join(sorted(targets))}")


@dataclass
class _Members:
    """Adds members to an archive, sealed where there is a key; notes checksums and sizes before and after sealing."""

    archive: zipfile.ZipFile
    key: SecretKey | None
    # Drawn for every bundle that is written, and never an argument: no key and nonce can come twice.
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(SALT_BYTES))
    plain: dict[str, Member] = field(default_factory=dict)
    sealed: dict[str, Member] = field(default_factory=dict)

    def add(self, name: str, pieces: Iterable[memoryview], size: int, expanded: int | None = None) -> None:
        """A member of `size` bytes."""
        if self.key is None:
            self.plain[name] = replace(_add(self.archive, name, pieces, size), expanded=expanded)
            return
        digest = hashlib.sha256()
        chunks = seal(MemberCipher(self.key, self.salt, name), _hashed(pieces, digest), size)
        self.sealed[name] = _add(self.archive, name, chunks, sealed_size(size))
        self.plain[name] = Member(digest.hexdigest(), size, expanded)


def _hashed(pieces: Iterable[memoryview], digest: Any) -> Iterator[memoryview]:
    for piece in pieces:
        digest.update(piece)
        yield piece


def _write(
    file: BinaryIO,
    manifest: Manifest,
    library: Path,
    weights: Mapping[str, RawTensor],
    packed: Packed | None,
    signer: SigningKey | None,
    secret: SecretKey | None,
) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        members = _Members(archive, secret)
        members.add(LIBRARY, _file_blocks(library), library.stat().st_size)
        members.add(WEIGHTS, chunks(weights), sum(len(piece) for piece in chunks(weights)))
        if packed is not None:
            members.add(PACKED, packed.pieces(), packed.size, packed.header.nbytes)
        version = 1 if packed is None else FORMAT_VERSION
        text = _json(replace(manifest, members=dict(members.plain), format_version=version).to_json())
        if secret is not None:
            members.add(SEALED_MANIFEST, (memoryview(text),), len(text))
            text = _json(SealHeader(manifest.target, secret.id, members.salt, members.sealed).to_json())
        _add(archive, MANIFEST, (memoryview(text),), len(text))
        _add_signature(archive, signer, {MANIFEST: text})


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _copy(file: BinaryIO, whole: Whole, signer: SigningKey) -> None:
    """The same members with another signature; the manifest is that which is signed."""
    part = whole.part
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, stored in part.members.items():
            if name not in (MANIFEST, SIGNATURE):
                _add(archive, name, _stored_blocks(part.file, stored), stored.size)
        _add(archive, MANIFEST, (memoryview(part.manifest),), len(part.manifest))
        _add_signature(archive, signer, whole.manifests())


def _add_signature(archive: zipfile.ZipFile, signer: SigningKey | None, manifests: Mapping[str, bytes]) -> None:
    if signer is not None:
        text = make_signature(signer, manifests)
        _add(archive, SIGNATURE, (memoryview(text),), len(text))


def _stored_blocks(file: BinaryIO, stored: Stored) -> Iterator[memoryview]:
    for begin in range(0, stored.size, _BLOCK):
        file.seek(stored.offset + begin)
        yield memoryview(file.read(min(_BLOCK, stored.size - begin)))


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
