"""Opening a bundle: the container, then the signature, then the variant, then the encryption; no member is used before.

A manifest is read once, and what was verified is what is parsed: a file that changes meanwhile changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Final

from whet.errors import BundleError, DecryptionError
from whet.runtime.container import Stored, read_container
from whet.runtime.fat import VARIANTS, Slice, best_variant, decode_index
from whet.runtime.files import READING, io_errors
from whet.runtime.keys import Access, SecretKey
from whet.runtime.manifest import Manifest, Member, TargetSpec
from whet.runtime.sealing import SEALED_MANIFEST, MemberCipher, OpenedFile, SealHeader, open_sealed
from whet.runtime.signature import SIGNATURE, SIGNATURE_SIZE, Signature, check_signature, parse_signature

LIBRARY: Final = "lib.so"
WEIGHTS: Final = "weights.safetensors"
PACKED: Final = "weights.packed"
MANIFEST: Final = "manifest.json"
_NAMES: Final = frozenset({LIBRARY, WEIGHTS, MANIFEST})
_OPTIONAL: Final = frozenset({PACKED, SEALED_MANIFEST, SIGNATURE})
_MANIFEST_LIMIT: Final = 64 << 20


@dataclass(frozen=True)
class Part:
    """One bundle, in a file of its own or as a variant of a fat one; or the whole of a fat one.

    Attributes:
        file: where its members lie, at the places that `members` gives.
        members: of the container; of an encrypted bundle that was opened, those of the ordinary one in it.
        manifest: the text of manifest.json.
        size: bytes of it all.
        source: what errors call it.
        sealed: what was readable of an encrypted bundle, once it is opened.
    """

    file: BinaryIO
    members: Mapping[str, Stored]
    manifest: bytes
    size: int
    source: str
    sealed: SealHeader | None = None

    @property
    def encrypted(self) -> bool:
        """Whether its members are sealed."""
        return SEALED_MANIFEST in self.members

    def manifest_json(self) -> Any:
        """The manifest as JSON values. Raises BundleError."""
        try:
            return json.loads(self.manifest)
        except (ValueError, RecursionError) as error:
            raise damaged(self.source, MANIFEST, f"is not JSON ({error})") from error

    def seal_header(self) -> SealHeader:
        """The readable manifest of an encrypted bundle, held against the members. Raises BundleError."""
        header = SealHeader.from_json(self.manifest_json(), self.source)
        _check_members(header.members, self)
        return header

    def parsed(self) -> Manifest:
        """The manifest of a bundle that is not encrypted, held against the members. Raises BundleError."""
        manifest = Manifest.from_json(self.manifest_json(), self.source)
        _check_members(manifest.members, self)
        if self.sealed is not None and manifest.target != self.sealed.target:
            what = f"is for {manifest.target.name!r}, which its readable manifest does not say"
            raise damaged(self.source, SEALED_MANIFEST, what)
        return manifest


@dataclass(frozen=True)
class Whole:
    """A file that was opened: one bundle, or several; its signature is checked where keys were given.

    Attributes:
        part: the bundle, or the index and the variants.
        signature: who says to have signed it, if anyone.
        targets: of the variants of a fat bundle, in its order.
        variants: the variants, opened; those that were not needed for the signature are missing.
    """

    part: Part
    signature: Signature | None
    targets: tuple[TargetSpec, ...] | None
    variants: Mapping[int, Part]

    def variant(self, number: int | None) -> Part:
        """The bundle itself; of a fat one, the variant, by default the best for this host. Raises BundleError."""
        if self.targets is None:
            return self.part
        if number is None:
            number = best_variant(self.targets, self.part.source)
        return self.variants.get(number) or _variant(self.part, number, self.targets[number])

    def manifests(self) -> dict[str, bytes]:
        """The manifests' texts by the names under which they are signed. Raises BundleError."""
        found = {MANIFEST: self.part.manifest}
        for number in range(len(self.targets or ())):
            found[f"{VARIANTS[number]}/{MANIFEST}"] = self.variant(number).manifest
        return found


def damaged(source: str, member: str, what: str) -> BundleError:
    """An error that names the file and the member."""
    return BundleError(f"{source} is damaged: {member} {what}. Copy or save it again")


@contextmanager
def opened(path: str | os.PathLike[str], access: Access) -> Iterator[Whole]:
    """Open the file; where keys are trusted, check that one of them signed it. Raises BundleError."""
    with io_errors(f"cannot read {path}", READING), open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"cannot read {path}: it is no regular file")
        with _sound(str(path)):
            members = read_container(file, status.st_size, frozenset({MANIFEST}), _NAMES | _OPTIONAL | set(VARIANTS))
            fat = members.keys() & set(VARIANTS)
            if fat and members.keys() - fat - {SIGNATURE} != {MANIFEST}:
                raise ValueError("it has members of one bundle and others of several")
            missing = () if fat else sorted(_NAMES - members.keys())
            if missing:
                raise ValueError(f"it has no member {missing[0]!r}")
        part = Part(file, members, _manifest_text(file, members[MANIFEST], str(path)), status.st_size, str(path))
        signature = _signature(part)
        if access.trusted is not None and not fat:
            check_signature(signature, {MANIFEST: part.manifest}, access.trusted, str(path))
        whole = Whole(part, signature, _targets(part) if fat else None, {})
        if access.trusted is not None and fat:
            whole = _all_variants(whole)
            check_signature(signature, whole.manifests(), access.trusted, str(path))
        yield whole


def unsealed(part: Part, key: SecretKey | None) -> Part:
    """The ordinary bundle in an encrypted one; an ordinary one as it is, without a key.

    Raises DecryptionError for a key that is missing, another or without use, BundleError for damage.
    """
    if not part.encrypted:
        if key is not None:
            raise DecryptionError(f"{part.source} is not encrypted, and a key was given: it takes none")
        return part
    header = part.seal_header()
    if key is None:
        raise DecryptionError(f"{part.source} is encrypted with the key {header.key_id}: give this key (key=, --key)")
    if key.id != header.key_id:
        raise DecryptionError(f"{part.source} is encrypted with the key {header.key_id}; the key given is {key.id}")
    text = _sealed_manifest(part, header, key)
    sealed = {name: item for name, item in part.members.items() if name not in (MANIFEST, SEALED_MANIFEST, SIGNATURE)}
    try:
        file = OpenedFile(part.file, sealed, key, header.salt, part.source)
    except ValueError as error:
        raise BundleError(f"{part.source} is damaged: a member {error}. Copy or save it again") from error
    members = {**file.members, MANIFEST: part.members[MANIFEST]}
    opened_file: Any = file
    return Part(opened_file, members, text, part.size, part.source, header)


def fill(file: BinaryIO, buffer: memoryview, source: str, member: str) -> None:
    """Read exactly that many bytes. Raises BundleError."""
    done = 0
    while done < len(buffer):
        read = file.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not read:
            raise damaged(source, member, "ends too early")
        done += read


def read_member_bytes(part: Part, name: str) -> bytearray:
    """All bytes of a member, unchecked. Raises BundleError where the file ends before."""
    data = bytearray(part.members[name].size)
    part.file.seek(part.members[name].offset)
    fill(part.file, memoryview(data), part.source, name)
    return data


def _sealed_manifest(part: Part, header: SealHeader, key: SecretKey) -> bytes:
    """The manifest of the ordinary bundle. It has checksums of all other members before they were sealed: with its own
    checksum in the readable manifest, whoever signed that has signed all of them.
    """
    if part.members[SEALED_MANIFEST].size > _MANIFEST_LIMIT:
        raise damaged(part.source, SEALED_MANIFEST, f"claims {part.members[SEALED_MANIFEST].size} bytes")
    sealed = bytes(read_member_bytes(part, SEALED_MANIFEST))
    if hashlib.sha256(sealed).hexdigest() != header.members[SEALED_MANIFEST].sha256:
        raise damaged(part.source, SEALED_MANIFEST, "does not have its checksum (sha256)")
    try:
        return open_sealed(MemberCipher(key, header.salt, SEALED_MANIFEST), sealed)
    except ValueError as error:
        raise damaged(part.source, SEALED_MANIFEST, f"cannot be decrypted ({error})") from error


def _check_members(members: Mapping[str, Member], part: Part) -> None:
    if set(members) != part.members.keys() - {MANIFEST, SIGNATURE}:
        raise damaged(part.source, MANIFEST, f"describes the members {sorted(members)}")
    for name, member in members.items():
        if member.size != part.members[name].size:
            what = f"has {part.members[name].size} bytes, the manifest says {member.size}"
            raise damaged(part.source, name, what)


def _signature(part: Part) -> Signature | None:
    stored = part.members.get(SIGNATURE)
    if stored is None:
        return None
    if stored.size != SIGNATURE_SIZE:
        raise damaged(part.source, SIGNATURE, f"has {stored.size} bytes in place of {SIGNATURE_SIZE}")
    text = bytes(read_member_bytes(part, SIGNATURE))
    if zlib.crc32(text) != stored.crc32:
        raise damaged(part.source, SIGNATURE, "does not have its checksum")
    try:
        return parse_signature(text)
    except ValueError as error:
        raise damaged(part.source, SIGNATURE, str(error)) from error


def _targets(part: Part) -> tuple[TargetSpec, ...]:
    named = [name for name in part.members if name not in (MANIFEST, SIGNATURE)]
    return tuple(decode_index(part.manifest_json(), named, part.source))


def _all_variants(whole: Whole) -> Whole:
    assert whole.targets is not None
    variants = {number: _variant(whole.part, number, target) for number, target in enumerate(whole.targets)}
    return replace(whole, variants=variants)


def _variant(part: Part, number: int, target: TargetSpec) -> Part:
    """A variant; a signature in it is of the bundle that it was, and counts for nothing here."""
    stored = part.members[VARIANTS[number]]
    inside: Any = Slice(part.file, stored.offset, stored.size)
    with _sound(f"{part.source}, variant {target.name!r},"):
        members = read_container(inside, stored.size, _NAMES, _OPTIONAL)
    found = Part(inside, members, _manifest_text(inside, members[MANIFEST], part.source), stored.size, part.source)
    says = found.seal_header().target if found.encrypted else found.parsed().target
    if says != target:
        raise damaged(part.source, VARIANTS[number], f"is for {says.name!r}, which its index does not say")
    return found


@contextmanager
def _sound(what: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise BundleError(f"{what} is not a whole bundle: {error}. Copy or save it again") from error


def _manifest_text(file: BinaryIO, stored: Stored, source: str) -> bytes:
    if stored.size > _MANIFEST_LIMIT:
        raise damaged(source, MANIFEST, f"claims {stored.size} bytes")
    text = bytearray(stored.size)
    file.seek(stored.offset)
    fill(file, memoryview(text), source, MANIFEST)
    if zlib.crc32(text) != stored.crc32:
        raise damaged(source, MANIFEST, "does not have its checksum")
    return bytes(text)
