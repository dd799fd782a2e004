"""The signature of a bundle: a member that holds an Ed25519 signature (RFC 8032) over the manifest.

What is signed is a text that names the signing key and every manifest with its SHA-256:

    whet bundle signature 1
    KEY ID
    SHA-256 manifest.json

and, of a fat bundle, a line more for the manifest of each variant ("SHA-256 0.whet/manifest.json"). A manifest holds
the names, sizes and checksums of all other members, which are held against it whenever a bundle is read; the zip around
them must be exactly these members and nothing more (whet.runtime.container), and says nothing else that is believed.
Members may stand in any order. The first line keeps a signature from being taken for one of anything else that the same
key has signed.

The member is a text of three lines, "whet bundle signature 1", the key's id, and the signature, in hexadecimal. It is
not signed itself, and nothing of it but the signature is believed: the text is made anew from what was read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from whet.errors import SignatureError
from whet.runtime.keys import ID_DIGITS, SIGNATURE_BYTES, PublicKey, SigningKey

SIGNATURE: Final = "signature"
"""The member's name."""

_HEAD: Final = "whet bundle signature 1\n"
_TEXT: Final = re.compile(f"{_HEAD}([0-9a-f]{{{ID_DIGITS}}})\n([0-9a-f]{{{2 * SIGNATURE_BYTES}}})\n")
SIGNATURE_SIZE: Final = len(_HEAD) + ID_DIGITS + 1 + 2 * SIGNATURE_BYTES + 1
"""Bytes of the member."""


@dataclass(frozen=True)
class Signature:
    """Who says to have signed, and the signature."""

    key_id: str
    value: bytes


def make_signature(key: SigningKey, manifests: Mapping[str, bytes]) -> bytes:
    """The member, for these texts of manifests by the names under which they are signed."""
    key_id = key.public.id
    return f"{_HEAD}{key_id}\n{key.sign(_message(key_id, manifests)).hex()}\n".encode()


def parse_signature(text: bytes) -> Signature:
    """Raises ValueError for what is no such member."""
    found = _TEXT.fullmatch(text.decode("ascii", "replace"))
    if found is None:
        raise ValueError("is not a signature that this whet knows")
    return Signature(found[1], bytes.fromhex(found[2]))


def check_signature(
    signature: Signature | None, manifests: Mapping[str, bytes], trusted: Sequence[PublicKey], source: str
) -> None:
    """Raises SignatureError unless one of the trusted keys signed exactly these manifests."""
    ids = ", ".join(key.id for key in trusted)
    if signature is None:
        raise SignatureError(f"{source} is not signed; trusted are bundles signed by {ids}")
    keys = [key for key in trusted if key.id == signature.key_id]
    if not keys:
        raise SignatureError(f"{source} is signed by the key {signature.key_id}, which is not trusted; trusted: {ids}")
    message = _message(signature.key_id, manifests)
    if not any(key.verifies(signature.value, message) for key in keys):
        raise SignatureError(
            f"{source} was changed after it was signed: its signature by the key {signature.key_id} does not fit. "
            "Do not use it; get it again from whoever signed it"
        )


def _message(key_id: str, manifests: Mapping[str, bytes]) -> bytes:
    lines = (f"{hashlib.sha256(text).hexdigest()} {name}\n" for name, text in manifests.items())
    return f"{_HEAD}{key_id}\n{''.join(lines)}".encode()
