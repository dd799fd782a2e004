"""Signatures and keys of bundles; what becomes of changed bundles is in tests/cpp/test_forgeries.py."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whet
from tests.runtime.conftest import DeviceRun, Model
from whet.errors import BundleError, BundleKeyError, DecryptionError, SignatureError
from whet.runtime import (
    join_bundles,
    load,
    read_bundle,
    read_variants,
    sign_bundle,
    verify_bundle,
    write_bundle,
    write_secret_key,
    write_signing_key,
)
from whet.runtime.keys import read_public_key, read_secret_key, read_signing_key

# RFC 8032, section 7.1, TEST 2.
SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Private and public key."""
    write_signing_key(tmp_path / "ours")
    return tmp_path / "ours", tmp_path / "ours.pub"


@pytest.fixture
def openssl() -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the program openssl is missing")


def saved(model: Model, path: Path, **options: Any) -> Path:
    target = replace(model.manifest.target, name=options.pop("target", "x86"))
    write_bundle(path, replace(model.manifest, target=target), model.library, model.weights, **options)
    return path


def outputs(path: Path, **keys: Any) -> list[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    x, mask = generator.normal(size=(8, 8)).astype("f4"), generator.random((8, 8)) < 0.5
    found = load(path, **keys)(x, mask=mask)
    return [found["y"], found["rest"][0]]


@pytest.mark.parametrize("options", [{"sign": "ours"}, {"encrypt": "secret"}, {"sign": "ours", "encrypt": "secret"}])
def test_results_are_the_same_bit_for_bit(
    options: dict[str, str], affine: Model, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_secret_key(tmp_path / "secret")
    expected = outputs(saved(affine, tmp_path / "plain.whet"))
    monkeypatch.chdir(tmp_path)
    path = saved(affine, tmp_path / "m.whet", **options)
    keys = {"trusted": ["ours.pub"] if "sign" in options else None, "key": options.get("encrypt")}
    for left, right in zip(outputs(path, **keys), expected, strict=True):
        assert left.tobytes() == right.tobytes()


def test_a_signed_bundle_is_the_bundle_and_one_member(affine: Model, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A runtime that is told of no keys reads it as any other."""
    plain, signed = saved(affine, tmp_path / "a.whet"), saved(affine, tmp_path / "b.whet", sign=pair[0])
    with zipfile.ZipFile(plain) as left, zipfile.ZipFile(signed) as right:
        assert [*left.namelist(), "signature"] == right.namelist()
        assert all(left.read(name) == right.read(name) for name in left.namelist())
        text = right.read("signature").decode().splitlines()
        manifest = hashlib.sha256(right.read("manifest.json")).hexdigest()
    public = read_public_key(pair[1])
    assert text[:2] == ["whet bundle signature 1", public.id]
    # What is signed, written out: others may make or check signatures without Whet.
    message = f"whet bundle signature 1\n{public.id}\n{manifest} manifest.json\n".encode()
    assert public.verifies(bytes.fromhex(text[2]), message)
    assert read_bundle(signed).manifest == read_bundle(signed, trusted=pair[1]).manifest


def test_signed_afterwards_is_signed_when_saved(affine: Model, pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = saved(affine, tmp_path / "a.whet")
    with pytest.raises(SignatureError, match="is not signed"):
        load(path, trusted=[pair[1]])
    assert sign_bundle(path, pair[0]) == read_public_key(pair[1])
    assert path.read_bytes() == saved(affine, tmp_path / "b.whet", sign=pair[0]).read_bytes()
    write_signing_key(tmp_path / "theirs")
    sign_bundle(path, tmp_path / "theirs", out=tmp_path / "c.whet")
    with pytest.raises(SignatureError, match="which is not trusted"):
        load(tmp_path / "c.whet", trusted=[pair[1]])
    load(tmp_path / "c.whet", trusted=[pair[1], tmp_path / "theirs.pub"])


def test_what_is_damaged_is_not_signed(affine: Model, pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = saved(affine, tmp_path / "a.whet")
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="sha256"):
        sign_bundle(path, pair[0])
    assert path.read_bytes() == data


def fat(model: Model, folder: Path, name: str, **options: Any) -> Path:
    encrypt = options.pop("encrypt", None)
    paths = [saved(model, folder / f"{name}.{target}", target=target, encrypt=encrypt) for target in ("one", "two")]
    join_bundles(folder / name, paths, key=encrypt, **options)
    return folder / name


@pytest.mark.parametrize("encrypted", [False, True])
def test_fat_bundles(affine: Model, pair: tuple[Path, Path], tmp_path: Path, encrypted: bool) -> None:
    private, public = pair
    write_secret_key(tmp_path / "secret")
    encrypt = tmp_path / "secret" if encrypted else None
    path = fat(affine, tmp_path, "fat.whet", sign=private, encrypt=encrypt)
    expected = outputs(saved(affine, tmp_path / "plain.whet"))
    for left, right in zip(outputs(path, trusted=[public], key=encrypt), expected, strict=True):
        assert left.tobytes() == right.tobytes()
    assert [item.name for item in read_variants(path, trusted=public) or ()] == ["one", "two"]
    found = verify_bundle(path, trusted=public, key=encrypt)
    assert found.targets == ("one", "two") and found.trusted and found.decrypted == encrypted
    unsigned = fat(affine, tmp_path, "unsigned.whet", encrypt=encrypt)
    with pytest.raises(SignatureError, match="is not signed"):
        load(unsigned, trusted=public, key=encrypt)
    sign_bundle(unsigned, private)
    load(unsigned, trusted=public, key=encrypt)


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_variants_are_not_exchanged(affine: Model, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Neither the one that is used nor another, be they signed by the same key themselves or in another fat bundle."""
    private, public = pair
    first = members_of(fat(affine, tmp_path, "first.whet", sign=private))
    changed = replace(affine, weights={key: item + 1 for key, item in affine.weights.items()})
    second = members_of(fat(changed, tmp_path, "second.whet", sign=private))
    alone = saved(changed, tmp_path / "alone.whet", target="one", sign=private).read_bytes()
    forged = {
        "used": {**first, "0.whet": second["0.whet"]},
        "other": {**first, "1.whet": second["1.whet"]},
        "both": {**first, "0.whet": second["0.whet"], "1.whet": second["1.whet"]},
        "signature": {**first, "signature": second["signature"]},
        "signed": {**first, "0.whet": alone},
        "index": {**first, "manifest.json": first["manifest.json"].replace(b'"two"', b'"too"')},
        "order": {**first, "0.whet": first["1.whet"], "1.whet": first["0.whet"]},
    }
    for name, members in forged.items():
        (tmp_path / name).write_bytes(zipped(members))
        with pytest.raises(BundleError, match=r"changed after it was signed|which its index does not say"):
            load(tmp_path / name, trusted=public)
    (tmp_path / "out").write_bytes(first["0.whet"])
    with pytest.raises(SignatureError, match="is not signed"):
        load(tmp_path / "out", trusted=public)
    (tmp_path / "in").write_bytes(zipped({name: data for name, data in first.items() if name != "1.whet"}))
    with pytest.raises(BundleError, match="index"):
        load(tmp_path / "in", trusted=public)


def test_a_file_that_changes_while_it_is_read(
    affine: Model, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was verified is what is parsed: the manifest is not read again."""
    from whet.runtime import parts

    path = saved(affine, tmp_path / "m.whet", sign=pair[0], compress=False)
    evil = saved(replace(affine, weights={k: v + 1 for k, v in affine.weights.items()}), tmp_path / "e", compress=False)
    data = evil.read_bytes() + path.read_bytes()[evil.stat().st_size :]
    check = parts.check_signature

    def checked(*args: Any) -> None:
        check(*args)
        path.write_bytes(data)

    monkeypatch.setattr(parts, "check_signature", checked)
    with pytest.raises(BundleError, match=r"sha256|ends too early"):
        load(path, trusted=pair[1])


def test_verify_tells_what_it_found(affine: Model, pair: tuple[Path, Path], tmp_path: Path) -> None:
    write_secret_key(tmp_path / "secret")
    path = saved(affine, tmp_path / "m.whet", sign=pair[0], encrypt=tmp_path / "secret")
    found = whet.verify_bundle(path)
    assert found.signed_by == read_public_key(pair[1]).id and not found.trusted
    assert found.encrypted_with == read_secret_key(tmp_path / "secret").id and not found.decrypted
    assert whet.verify_bundle(path, trusted=pair[1]).trusted
    assert whet.verify_bundle(path, key=tmp_path / "secret").decrypted
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="sha256"):
        whet.verify_bundle(path, trusted=pair[1])


@pytest.mark.usefixtures("openssl")
def test_keys_of_openssl(affine: Model, tmp_path: Path) -> None:
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "k.pem"]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", tmp_path / "k.pem", "-pubout", "-out", tmp_path / "k.pub"], check=True)
    path = saved(affine, tmp_path / "m.whet", sign=tmp_path / "k.pem")
    load(path, trusted=(tmp_path / "k.pub").read_bytes())


def test_signatures_of_the_rfc() -> None:
    from whet.runtime.keys import PublicKey, SigningKey

    key = SigningKey(bytes.fromhex(SECRET))
    assert key.public == PublicKey(bytes.fromhex(PUBLIC))
    assert key.sign(b"\x72").hex() == SIGNATURE
    assert key.public.verifies(bytes.fromhex(SIGNATURE), b"\x72")
    assert not key.public.verifies(bytes.fromhex(SIGNATURE), b"\x73")
    assert SECRET not in repr(key) and "raw" not in repr(key)


def test_private_keys_are_their_owners_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        write_signing_key(tmp_path / "a")
        write_secret_key(tmp_path / "b")
    finally:
        os.umask(old)
    for name in ("a", "b"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    for write in (write_signing_key, write_secret_key):
        before = (tmp_path / "a").read_bytes()
        with pytest.raises(BundleKeyError, match="is there already"):
            write(tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == before
    with pytest.raises(BundleKeyError, match="cannot write"):
        write_secret_key(tmp_path / "none" / "b")


@pytest.mark.usefixtures("openssl")
def test_what_is_no_key(affine: Model, pair: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = pair
    path = saved(affine, tmp_path / "m.whet")
    write_secret_key(tmp_path / "secret")
    subprocess.run(["openssl", "genrsa", "-out", tmp_path / "rsa", "2048"], check=True, capture_output=True)
    locked = tmp_path / "locked"
    command = ["openssl", "pkcs8", "-topk8", "-in", private, "-out", locked, "-passout", "pass:x"]
    subprocess.run(command, check=True)
    for trusted, words in (
        (private, "ours is not an Ed25519 public key as PEM"),
        (tmp_path / "none", "cannot read the key .*none: No such file"),
        (tmp_path / "secret", "is not an Ed25519 public key"),
        (b"hello", "the key is not an Ed25519 public key"),
        ([], "empty list"),
    ):
        with pytest.raises(BundleKeyError, match=words):
            load(path, trusted=trusted)
    for key in (tmp_path / "rsa", public, locked, tmp_path / "secret"):
        with pytest.raises(BundleKeyError, match="is not an Ed25519 private key"):
            read_signing_key(key)
    for bad in (private, b"", b"0" * 63, b"0" * 65, b"x" * 64, b"\0" * 31):
        with pytest.raises(BundleKeyError, match="is no key for encryption: that is 32 bytes"):
            load(path, key=bad)
    assert read_secret_key(bytes(32)) == read_secret_key(b"0" * 64 + b"\n")
    with pytest.raises(DecryptionError, match="is not encrypted"):
        load(path, key=tmp_path / "secret")


def test_a_device_without_cryptography(affine: Model, pair: tuple[Path, Path], on_device: DeviceRun) -> None:
    folder = pair[0].parent
    write_secret_key(folder / "secret")
    saved(affine, folder / "signed.whet", sign=pair[0])
    saved(affine, folder / "sealed.whet", encrypt=folder / "secret")
    printed = on_device(
        """
        sys.modules["cryptography"] = None
        import os, whet
        os.chdir(sys.argv[1])
        whet.load("signed.whet")
        print("loaded")
        for name, keys in (("signed.whet", {"trusted": ["ours.pub"]}), ("sealed.whet", {"key": "secret"})):
            try:
                whet.load(name, **keys)
            except whet.errors.TargetError as error:
                print(error)
        try:
            whet.load("sealed.whet")
        except whet.errors.DecryptionError as error:
            print(error)
        """,
        folder,
    )
    first, second, third, fourth = printed.splitlines()
    assert first == "loaded"
    assert "pip install 'whet[crypto]'" in second and "pip install 'whet[crypto]'" in third
    assert "is encrypted with the key" in fourth
