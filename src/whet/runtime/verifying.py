"""Whether a bundle is what was written, and by whom: every checksum, the signature, and what it is encrypted with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from whet.runtime.bundle import Trusted, read_bundle
from whet.runtime.keys import Access, KeySource
from whet.runtime.manifest import Member
from whet.runtime.parts import Part, damaged, opened

_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class Verification:
    """What was found in a bundle that is whole.

    Attributes:
        targets: names of the targets, several of a fat bundle.
        signed_by: id of the key that it says to be signed by; None: it is not signed.
        trusted: whether the signature was checked and is one of a trusted key.
        encrypted_with: id of the key that it is encrypted with; None: it is not encrypted.
        decrypted: whether the key was given, so that what is encrypted was checked too.
    """

    targets: tuple[str, ...]
    signed_by: str | None
    trusted: bool
    encrypted_with: str | None
    decrypted: bool


def verify_bundle(
    path: str | os.PathLike[str], *, trusted: Trusted = None, key: KeySource | None = None
) -> Verification:
    """Check all of a bundle for any device, every variant of a fat one; nothing of it is run.

    With `trusted` one of these public keys must have signed it. An encrypted bundle can be checked without its key,
    as far as its members are what was signed. Raises what `whet.load` raises, but for another device.
    """
    access = Access.of(trusted, key)
    with opened(path, access) as whole:
        numbers = range(len(whole.targets)) if whole.targets is not None else (None,)
        ids: list[str | None] = []
        targets = []
        for number in numbers:
            part = whole.variant(number)
            if part.encrypted:
                header = part.seal_header()
                _check_checksums(part, header.members)
                ids.append(header.key_id)
                targets.append(header.target.name)
            else:
                ids.append(None)
                targets.append(part.parsed().target.name)
            if not part.encrypted or access.key is not None:
                read_bundle(path, for_this_host=False, variant=number, trusted=trusted, key=key)
        signed_by = None if whole.signature is None else whole.signature.key_id
    encrypted_with = next((item for item in ids if item is not None), None)
    decrypted = encrypted_with is not None and access.key is not None
    return Verification(tuple(targets), signed_by, access.trusted is not None, encrypted_with, decrypted)


def _check_checksums(part: Part, members: Mapping[str, Member]) -> None:
    for name, member in members.items():
        digest = hashlib.sha256()
        stored = part.members[name]
        for begin in range(0, stored.size, _BLOCK):
            part.file.seek(stored.offset + begin)
            digest.update(part.file.read(min(_BLOCK, stored.size - begin)))
        if digest.hexdigest() != member.sha256:
            raise damaged(part.source, name, "does not have its checksum (sha256)")
