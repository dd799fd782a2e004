"""The keys of bundles and what is done with them: Ed25519 signatures (RFC 8032) and authenticated encryption with
ChaCha20-Poly1305 (RFC 8439), both by the package cryptography.

Private and public keys are PEM files (PKCS #8, SubjectPublicKeyInfo), as `openssl genpkey -algorithm ed25519` makes
them; a key for encryption is 32 random bytes, raw or as 64 hexadecimal digits.

ChaCha20-Poly1305 and not AES-GCM: many boards (Raspberry Pi 4 and before) have no instructions for AES, where AES is
slow, or leaks its key through the caches.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from whet.errors import BundleKeyError, TargetError

KeySource = str | os.PathLike[str] | bytes
"""A key file, or what would be in it."""

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
TAG_BYTES: Final = 16
NONCE_BYTES: Final = 12
ID_DIGITS: Final = 32
_HEX_KEY: Final = re.compile(rb"[0-9a-fA-F]{%d}" % (2 * KEY_BYTES))
_PRIVATE_MODE: Final = 0o600
_PUBLIC_MODE: Final = 0o644
# A longer file is no key.
_LONGEST_FILE: Final = 1 << 16


def _cryptography(name: str) -> Any:
    """A module of the package cryptography. Raises TargetError where it is not installed."""
    try:
        return import_module(f"cryptography.{name}")
    except ImportError as error:
        raise TargetError(
            f"signed and encrypted bundles need the package cryptography ({error}): pip install 'whet[crypto]'"
        ) from error


def _asymmetric() -> Any:
    return _cryptography("hazmat.primitives.asymmetric.ed25519")


def _serialization() -> Any:
    return _cryptography("hazmat.primitives.serialization")


def _fingerprint(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:ID_DIGITS]


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key; `id` is the first half of its SHA-256 in hexadecimal."""

    raw: bytes

    @property
    def id(self) -> str:
        """What bundles name the key by."""
        return _fingerprint(self.raw)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the key's owner signed the message."""
        invalid = _cryptography("exceptions").InvalidSignature
        try:
            _asymmetric().Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except invalid:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 private key."""

    raw: bytes = field(repr=False)

    @property
    def public(self) -> PublicKey:
        """What verifies its signatures."""
        serialization = _serialization()
        public = _asymmetric().Ed25519PrivateKey.from_private_bytes(self.raw).public_key()
        return PublicKey(public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        signature: bytes = _asymmetric().Ed25519PrivateKey.from_private_bytes(self.raw).sign(message)
        return signature


@dataclass(frozen=True)
class SecretKey:
    """A key for encryption, which nothing is encrypted with directly: `derive` makes others of it."""

    raw: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """What bundles name the key by. It says nothing of a key whose 256 bits are random."""
        return _fingerprint(b"whet bundle key\0" + self.raw)

    def derive(self, salt: bytes, purpose: bytes) -> bytes:
        """32 bytes by HKDF-SHA256 (RFC 5869): other ones for each salt and purpose."""
        hashes = _cryptography("hazmat.primitives.hashes")
        hkdf = _cryptography("hazmat.primitives.kdf.hkdf").HKDF
        derived: bytes = hkdf(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=purpose).derive(self.raw)
        return derived


class Aead:
    """ChaCha20-Poly1305 with one key; whoever calls it never gives it a nonce twice."""

    def __init__(self, key: bytes) -> None:
        self._cipher = _cryptography("hazmat.primitives.ciphers.aead").ChaCha20Poly1305(key)
        self._invalid = _cryptography("exceptions").InvalidTag

    def seal(self, nonce: bytes, plain: bytes, associated: bytes) -> bytes:
        """The ciphertext, followed by 16 bytes that authenticate it, the nonce and the associated data."""
        sealed: bytes = self._cipher.encrypt(nonce, plain, associated)
        return sealed

    def open(self, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
        """What was sealed. Raises ValueError for anything else."""
        try:
            plain: bytes = self._cipher.decrypt(nonce, sealed, associated)
        except self._invalid as error:
            raise ValueError("it was changed, or encrypted with another key") from error
        return plain


@dataclass(frozen=True)
class Access:
    """What a bundle is opened with: the keys of which one must have signed it (None: it need not be signed), and the
    key that it is encrypted with (None: it must not be).
    """

    trusted: tuple[PublicKey, ...] | None = None
    key: SecretKey | None = None

    @classmethod
    def of(cls, trusted: KeySource | Sequence[KeySource] | None, key: KeySource | None) -> Access:
        """Read the keys. Raises BundleKeyError."""
        if isinstance(trusted, str | os.PathLike | bytes):
            trusted = (trusted,)
        if trusted is not None and not trusted:
            raise BundleKeyError("trusted= is an empty list: give the public keys that may have signed the bundle")
        keys = None if trusted is None else tuple(map(read_public_key, trusted))
        return cls(keys, None if key is None else read_secret_key(key))


def read_public_key(source: KeySource) -> PublicKey:
    """A PEM file (SubjectPublicKeyInfo). Raises BundleKeyError."""
    serialization = _serialization()
    key = _pem(source, "an Ed25519 public key", serialization.load_pem_public_key, _asymmetric().Ed25519PublicKey)
    return PublicKey(key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))


def read_signing_key(source: KeySource) -> SigningKey:
    """A PEM file (PKCS #8, without a password). Raises BundleKeyError."""
    serialization = _serialization()
    key = _pem(
        source,
        "an Ed25519 private key without a password",
        lambda data: serialization.load_pem_private_key(data, None),
        _asymmetric().Ed25519PrivateKey,
    )
    encoding, private = serialization.Encoding.Raw, serialization.PrivateFormat.Raw
    return SigningKey(key.private_bytes(encoding, private, serialization.NoEncryption()))


def read_secret_key(source: KeySource) -> SecretKey:
    """32 bytes, raw or as hexadecimal digits. Raises BundleKeyError."""
    data = _contents(source)
    if len(data) == KEY_BYTES:
        return SecretKey(data)
    if not _HEX_KEY.fullmatch(data.strip()):
        raise BundleKeyError(
            f"{_shown(source)} is no key for encryption: that is {KEY_BYTES} bytes, raw or as {2 * KEY_BYTES} "
            "hexadecimal digits (whet keygen --encryption)"
        )
    return SecretKey(bytes.fromhex(data.decode()))


def write_signing_key(path: str | os.PathLike[str]) -> PublicKey:
    """Make a pair of keys: `path` with the private one, which its owner alone can read, and `path`.pub.

    Raises BundleKeyError, also where either of them is there already.
    """
    serialization = _serialization()
    key = _asymmetric().Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    other = Path(f"{os.fspath(path)}.pub")
    if other.exists():
        raise BundleKeyError(f"{other} is there already: choose another name")
    _create(Path(path), private, _PRIVATE_MODE)
    _create(other, public, _PUBLIC_MODE)
    return read_public_key(other)


def write_secret_key(path: str | os.PathLike[str]) -> SecretKey:
    """Make a key for encryption, as hexadecimal digits in a file that its owner alone can read.

    Raises BundleKeyError, also where the file is there already.
    """
    key = SecretKey(secrets.token_bytes(KEY_BYTES))
    _create(Path(path), key.raw.hex().encode() + b"\n", _PRIVATE_MODE)
    return key


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        # The mode from the beginning: a file that is closed to others only later was open for a while.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode)
    except FileExistsError as error:
        raise BundleKeyError(f"{path} is there already: choose another name, a key is not overwritten") from error
    except OSError as error:
        raise BundleKeyError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        with suppress(FileNotFoundError):
            path.unlink()
        raise BundleKeyError(f"cannot write {path}: {error.strerror}") from error


def _contents(source: KeySource) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        with open(source, "rb") as file:
            data = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise BundleKeyError(f"cannot read the key {os.fspath(source)}: {error.strerror}") from error
    if len(data) > _LONGEST_FILE:
        raise BundleKeyError(f"{os.fspath(source)} is no key: it is too long")
    return data


def _shown(source: KeySource) -> str:
    """Its name; never what is in it."""
    return "the key" if isinstance(source, bytes) else os.fspath(source)


def _pem(source: KeySource, wanted: str, load: Callable[[bytes], Any], kind: type) -> Any:
    data = _contents(source)
    try:
        key = load(data)
    # A password that is missing is a TypeError, an unknown algorithm an exception of the package's own.
    except (ValueError, TypeError, _cryptography("exceptions").UnsupportedAlgorithm) as error:
        raise BundleKeyError(f"{_shown(source)} is not {wanted} as PEM ({error})") from error
    if not isinstance(key, kind):
        raise BundleKeyError(f"{_shown(source)} is not {wanted}: it is of another kind")
    return key
