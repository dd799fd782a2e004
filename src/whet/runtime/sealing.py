"""Encrypted bundles: every member of an ordinary bundle, sealed with ChaCha20-Poly1305 (RFC 8439).

    lib.so, weights.safetensors, weights.packed   as in an ordinary bundle, each sealed
    manifest.sealed                               the manifest of the ordinary bundle, sealed
    manifest.json                                 what stays readable: format version 4, the target, which key, a salt,
                                                  and size and checksum of the sealed members

A sealed member is cut into chunks of 64 KiB (the last one is shorter, and there is always one), each followed by its
tag. The number of a chunk, and whether it is the last, are its nonce (the STREAM construction of Hoang, Reyhanitabar,
Rogaway and Vizar, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015): chunks cannot
be left out, repeated, exchanged or cut off. The id of the key and the name of the member are associated data. Each
member is sealed with a key of its own, derived (HKDF-SHA256, RFC 5869) from the device's key, a random salt of 32 bytes
that is drawn for every bundle that is written, and the member's name: no pair of key and nonce serves twice, and a
member of one bundle does not fit into another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from whet.errors import BundleError
from whet.runtime.container import Stored
from whet.runtime.files import ReadOnly
from whet.runtime.keys import NONCE_BYTES, TAG_BYTES, Aead, SecretKey
from whet.runtime.manifest import OR_SAVE_OLDER, Member, Reader, TargetSpec, parse_target, read_member, readable_version

SEALED_MANIFEST: Final = "manifest.sealed"
SEALED_FORMAT_VERSION: Final = 4
CIPHER: Final = "chacha20-poly1305"
CHUNK: Final = 64 << 10
SALT_BYTES: Final = 32
_SALT: Final = re.compile(f"[0-9a-f]{{{2 * SALT_BYTES}}}")


@dataclass(frozen=True)
class SealHeader:
    """What stays readable of an encrypted bundle; `members` are checksum and size of the members as they are sealed."""

    target: TargetSpec
    key_id: str
    salt: bytes
    members: Mapping[str, Member]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "format_version": SEALED_FORMAT_VERSION,
            "target": {**vars(self.target), "features": list(self.target.features)},
            "encryption": {"cipher": CIPHER, "key": self.key_id, "salt": self.salt.hex()},
            "members": {name: item.to_json() for name, item in self.members.items()},
        }

    @classmethod
    def from_json(cls, value: Any, source: str) -> SealHeader:
        """Parse and check. Raises BundleError."""
        try:
            top = Reader(value, "")
            version = readable_version(top, SEALED_FORMAT_VERSION, source, OR_SAVE_OLDER)
            encryption = top.object("encryption")
            cipher, salt = encryption.text("cipher"), encryption.text("salt")
            if version != SEALED_FORMAT_VERSION or cipher != CIPHER or not _SALT.fullmatch(salt):
                raise ValueError(f"it has the version {version}, the cipher {cipher[:60]!r}, the salt {salt[:70]!r}")
            members = {name: read_member(item) for name, item in top.table("members").items()}
            return cls(parse_target(top.fields.get("target")), encryption.text("key"), bytes.fromhex(salt), members)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{source} is not an encrypted bundle that whet wrote: {error}. Save it again") from error


class MemberCipher:
    """Seals and opens the chunks of one member of one bundle."""

    def __init__(self, key: SecretKey, salt: bytes, name: str) -> None:
        self._aead = Aead(key.derive(salt, f"whet sealed member 1\n{name}".encode()))
        self._associated = f"whet sealed member 1\n{key.id}\n{name}".encode()

    def seal(self, number: int, last: bool, plain: bytes) -> bytes:
        """Chunk `number`, counted from 0."""
        return self._aead.seal(nonce(number, last), plain, self._associated)

    def open(self, number: int, last: bool, sealed: bytes) -> bytes:
        """Raises ValueError unless it is this chunk of this member."""
        return self._aead.open(nonce(number, last), sealed, self._associated)


def nonce(number: int, last: bool) -> bytes:
    """11 bytes with the number of the chunk, big-endian, and one that says whether it is the last."""
    return number.to_bytes(NONCE_BYTES - 1, "big") + bytes([last])


def chunk_count(plain_size: int) -> int:
    """Of a member of that many bytes."""
    return max(1, -(-plain_size // CHUNK))


def sealed_size(plain_size: int) -> int:
    """Bytes of a member when sealed."""
    return plain_size + TAG_BYTES * chunk_count(plain_size)


def plain_size(sealed: int) -> int:
    """Bytes of a sealed member when opened. Raises ValueError for an impossible size."""
    size = sealed - TAG_BYTES * max(1, -(-sealed // (CHUNK + TAG_BYTES)))
    if size < 0 or sealed_size(size) != sealed:
        raise ValueError(f"has {sealed} bytes, which no sealed member has")
    return size


def seal(cipher: MemberCipher, pieces: Iterable[memoryview], size: int) -> Iterator[memoryview]:
    """The sealed chunks of a member that comes in pieces of any size, `size` bytes together."""
    count = chunk_count(size)
    held = bytearray()
    number = 0
    for piece in pieces:
        held += piece
        while len(held) >= CHUNK and number < count - 1:
            yield memoryview(cipher.seal(number, False, bytes(held[:CHUNK])))
            del held[:CHUNK]
            number += 1
    # Chunks are numbered for the size that was announced.
    if number * CHUNK + len(held) != size:
        raise BundleError("a file changed its size while it was encrypted: save the bundle again")
    yield memoryview(cipher.seal(number, True, bytes(held)))


def open_sealed(cipher: MemberCipher, sealed: bytes) -> bytes:
    """A whole member. Raises ValueError unless it is what was sealed."""
    count = chunk_count(plain_size(len(sealed)))
    step = CHUNK + TAG_BYTES
    return b"".join(
        cipher.open(number, number == count - 1, sealed[number * step : (number + 1) * step]) for number in range(count)
    )


@dataclass(frozen=True)
class _Place:
    """A member in the opened file (from `begin` to `end`) and sealed in the other (from `offset` on)."""

    name: str
    begin: int
    end: int
    offset: int
    cipher: MemberCipher


class OpenedFile(ReadOnly):
    """The members of an encrypted bundle one after the other, as a file that can only be read.

    A chunk is opened when something of it is read; no byte is handed out before its chunk's tag was found right.
    Raises BundleError where it is not. `members` says where they are.
    """

    def __init__(self, file: BinaryIO, sealed: Mapping[str, Stored], key: SecretKey, salt: bytes, source: str) -> None:
        self._file = file
        self._source = source
        self._places: list[_Place] = []
        self._held: tuple[_Place, int, bytes] | None = None
        self.members: dict[str, Stored] = {}
        end = 0
        for name, stored in sealed.items():
            begin, end = end, end + plain_size(stored.size)
            self._places.append(_Place(name, begin, end, stored.offset, MemberCipher(key, salt, name)))
            self.members[name] = Stored(begin, end - begin, 0)
        super().__init__(end)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as the file goes."""
        view = memoryview(buffer).cast("B")
        done = 0
        for place in self._places:
            while done < len(view) and place.begin <= self._position < place.end:
                at = self._position - place.begin
                chunk = self._chunk(place, at // CHUNK)
                piece = memoryview(chunk)[at % CHUNK :][: len(view) - done]
                view[done : done + len(piece)] = piece
                done += len(piece)
                self._position += len(piece)
        return done

    def _chunk(self, place: _Place, number: int) -> bytes:
        if self._held is not None and self._held[:2] == (place, number):
            return self._held[2]
        last = number == chunk_count(place.end - place.begin) - 1
        self._file.seek(place.offset + number * (CHUNK + TAG_BYTES))
        size = min(CHUNK, place.end - place.begin - number * CHUNK) + TAG_BYTES
        try:
            chunk = place.cipher.open(number, last, self._file.read(size))
        except ValueError as error:
            raise BundleError(
                f"{self._source} is damaged: {place.name} cannot be decrypted ({error}). Copy or save it again"
            ) from error
        self._held = (place, number, chunk)
        return chunk
