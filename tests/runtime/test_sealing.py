"""Encryption of members: chunks, nonces, and what an encrypted bundle shows."""

from __future__ import annotations

import json
import os
import stat
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.conftest import Model
from whet.errors import BundleError
from whet.runtime import load, read_bundle, write_bundle, write_secret_key
from whet.runtime import sealing as module
from whet.runtime.container import Stored
from whet.runtime.keys import TAG_BYTES, Aead, SecretKey
from whet.runtime.sealing import (
    CHUNK,
    MemberCipher,
    OpenedFile,
    nonce,
    open_sealed,
    plain_size,
    seal,
    sealed_size,
)

KEY = SecretKey(bytes(range(32)))
SALT = bytes(32)
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5]))

# RFC 8439, section 2.8.2.
RFC_KEY = bytes(range(0x80, 0xA0))
RFC_NONCE = bytes.fromhex("070000004041424344454647")
RFC_ASSOCIATED = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
RFC_PLAIN = (
    b"Ladies and Gentlemen of the class of '99: "
    b"If I could offer you only one tip for the future, sunscreen would be it."
)


def test_the_cipher_of_the_rfc() -> None:
    sealed = Aead(RFC_KEY).seal(RFC_NONCE, RFC_PLAIN, RFC_ASSOCIATED)
    assert sealed[:16].hex() == "d31a8d34648e60db7b86afbc53ef7ec2"
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"
    assert Aead(RFC_KEY).open(RFC_NONCE, sealed, RFC_ASSOCIATED) == RFC_PLAIN


def test_the_key_derivation_of_the_rfc() -> None:
    """RFC 5869, test case 1, whose key has 22 bytes: `derive` takes what it is given."""
    derived = SecretKey(b"\x0b" * 22).derive(bytes(range(13)), bytes(range(0xF0, 0xFA)))
    assert derived.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


def sealed(data: bytes, name: str = "lib.so", salt: bytes = SALT, step: int = 1000) -> bytes:
    pieces = [memoryview(data)[at : at + step] for at in range(0, len(data), step)]
    return b"".join(seal(MemberCipher(KEY, salt, name), pieces, len(data)))


@given(size=SIZES, step=st.sampled_from([1000, CHUNK, 3 * CHUNK]))
def test_what_is_sealed_is_opened(size: int, step: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    found = sealed(data, step=step)
    assert len(found) == sealed_size(size) and plain_size(len(found)) == size
    assert open_sealed(MemberCipher(KEY, SALT, "lib.so"), found) == data


@given(st.integers(0, 5 * CHUNK))
def test_sizes(size: int) -> None:
    """Every size of a sealed member is that of one size of a plain one; others are refused."""
    try:
        assert sealed_size(plain_size(size)) == size
    except ValueError as error:
        assert "no sealed member has" in str(error)
        assert not any(sealed_size(plain) == size for plain in range(max(0, size - 6 * TAG_BYTES), size))


@settings(max_examples=30)
@given(size=SIZES, data=st.data())
def test_any_other_bytes_are_refused(size: int, data: st.DataObject) -> None:
    found = sealed(np.random.default_rng(size).bytes(size))
    kind = data.draw(st.sampled_from(["cut", "flip", "grow"]))
    at = data.draw(st.integers(0, len(found) - 1))
    other = {
        "cut": found[:at],
        "flip": found[:at] + bytes([found[at] ^ 1]) + found[at + 1 :],
        "grow": found[:at] + b"\0" + found[at:],
    }[kind]
    if other == found:
        return
    with pytest.raises(ValueError, match=r"no sealed member has|changed"):
        open_sealed(MemberCipher(KEY, SALT, "lib.so"), other)


def test_a_member_opens_as_itself_only() -> None:
    found = sealed(b"code")
    others = {
        "name": MemberCipher(KEY, SALT, "weights.packed"),
        "salt": MemberCipher(KEY, bytes(31) + b"\1", "lib.so"),
        "key": MemberCipher(SecretKey(bytes(32)), SALT, "lib.so"),
    }
    for cipher in others.values():
        with pytest.raises(ValueError, match="another key"):
            open_sealed(cipher, found)


def test_a_size_that_changes_is_noticed() -> None:
    for announced in (0, 3, 5, CHUNK + 1):
        with pytest.raises(BundleError, match="changed its size"):
            list(seal(MemberCipher(KEY, SALT, "lib.so"), [memoryview(b"code")], announced))


numbers = st.tuples(st.integers(0, 1 << 80), st.booleans())


@given(numbers, numbers)
def test_nonces_are_other_ones_for_other_chunks(left: tuple[int, bool], right: tuple[int, bool]) -> None:
    assert (nonce(*left) == nonce(*right)) == (left == right)
    assert len(nonce(*left)) == 12


def test_no_key_and_nonce_come_twice(affine: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all chunks of all members of the same bundle, written three times with the same key."""
    used: list[tuple[bytes, bytes]] = []

    class Noting(Aead):
        def __init__(self, key: bytes) -> None:
            super().__init__(key)
            self.key = key

        def seal(self, nonce: bytes, plain: bytes, associated: bytes) -> bytes:
            used.append((self.key, nonce))
            return super().seal(nonce, plain, associated)

    monkeypatch.setattr(module, "Aead", Noting)
    weights = {**affine.weights, "ballast": np.random.default_rng(0).random(100_000).astype("f4")}
    files = set()
    for _ in range(3):
        write_bundle(tmp_path / "m.whet", affine.manifest, affine.library, weights, encrypt=KEY.raw)
        files.add((tmp_path / "m.whet").read_bytes())
    assert len(files) == 3 and len(used) >= 3 * 9
    assert len(set(used)) == len(used)
    assert KEY.raw not in {key for key, _ in used}


def test_what_stays_readable(affine: Model, tmp_path: Path) -> None:
    write_secret_key(tmp_path / "secret")
    write_bundle(tmp_path / "m.whet", affine.manifest, affine.library, affine.weights, encrypt=tmp_path / "secret")
    with zipfile.ZipFile(tmp_path / "m.whet") as archive:
        manifest = json.loads(archive.read("manifest.json"))
        assert archive.namelist() == ["lib.so", "weights.safetensors", "manifest.sealed", "manifest.json"]
        for name in ("lib.so", "weights.safetensors", "manifest.sealed"):
            data = archive.read(name)
            assert b"ELF" not in data and b"mask" not in data and b"data_offsets" not in data
    assert set(manifest) == {"format_version", "target", "encryption", "members"}
    assert manifest["format_version"] == 4
    assert set(manifest["encryption"]) == {"cipher", "key", "salt"}
    found = read_bundle(tmp_path / "m.whet", key=tmp_path / "secret")
    assert found.manifest.inputs == affine.manifest.inputs
    assert found.library == affine.library.read_bytes()


def opened(data: dict[str, bytes], path: Path) -> OpenedFile:
    places, text = {}, b""
    for name, plain in data.items():
        member = sealed(plain, name)
        places[name] = Stored(len(text), len(member), 0)
        text += member
    path.write_bytes(text)
    file: Any = path.open("rb")
    return OpenedFile(file, places, KEY, SALT, str(path))


def test_reading_anywhere(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    data = {"a": generator.bytes(3 * CHUNK + 7), "b": b"", "c": generator.bytes(CHUNK), "d": b"end"}
    file = opened(data, tmp_path / "f")
    whole = b"".join(data.values())
    assert file.readable() and file.seekable()
    assert file.read() == whole
    for _ in range(200):
        first, size = int(generator.integers(0, len(whole) + 10)), int(generator.integers(0, 2 * CHUNK))
        assert file.seek(first) == first
        assert file.read(size) == whole[first : first + size]
    for name, stored in file.members.items():
        assert whole[stored.offset : stored.offset + stored.size] == data[name]


def test_the_code_comes_to_no_disk(
    affine: Model, counter: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One module after the other and at the same time: none is taken for another."""
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda **_: pytest.fail("a folder was made"))
    for name, model in (("affine", affine), ("counter", counter)):
        write_bundle(tmp_path / name, model.manifest, model.library, model.weights, encrypt=KEY.raw)
    x, mask = np.ones((2, 8), "f4"), np.ones((2, 8), bool)
    before = len(os.listdir("/proc/self/fd"))
    held = []
    for _ in range(5):
        first, second = (load(tmp_path / name, key=KEY.raw) for name in ("affine", "counter"))
        np.testing.assert_array_equal(first(x, mask=mask)["rest"][0], ~mask)
        np.testing.assert_array_equal(second(np.ones(4, "f4"))[0], np.array([3, 4, 5, 6], "f4"))
        held = [first, second]
    assert len(os.listdir("/proc/self/fd")) == before and held


def test_a_system_without_files_in_memory(affine: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code then lies in a folder that is closed to others, and is gone once it is loaded."""
    modes = []
    make = tempfile.TemporaryDirectory

    class Noting(make):  # type: ignore[type-arg, valid-type, misc]
        def __enter__(self) -> str:
            modes.append(stat.S_IMODE(os.stat(self.name).st_mode))
            return str(super().__enter__())

    def refused(*_: object) -> int:
        raise OSError(38, "no memfd_create here")

    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", Noting)
    monkeypatch.setattr(os, "memfd_create", refused)
    write_bundle(tmp_path / "m", affine.manifest, affine.library, affine.weights, encrypt=KEY.raw)
    load(tmp_path / "m", key=KEY.raw)
    assert modes == [0o700] and list((tmp_path / "temporary").iterdir()) == []
