"""What is refused on reading, before any code is loaded, and what happens when writing fails."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.conftest import DeviceRun, Model, host_target
from whet.errors import BundleError
from whet.runtime import bundle as bundle_module
from whet.runtime import host, load, loading, read_bundle, read_manifest, write_bundle
from whet.runtime.container import read_container

Members = dict[str, bytes]


@pytest.fixture
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when a library gets as far as the loader."""

    def refuse(*_: Any) -> None:
        pytest.fail("code was loaded")

    monkeypatch.setattr(loading, "_load_library", refuse)


@pytest.fixture(scope="module")
def small(affine: Model, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A bundle of a few KB: its library has the headers of a real one, and no segments."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "lib.so").write_bytes(_tiny_library(affine))
    write_bundle(folder / "m.whet", affine.manifest, folder / "lib.so", affine.weights)
    return (folder / "m.whet").read_bytes()


def _tiny_library(model: Model) -> bytes:
    library = bytearray(model.library.read_bytes()[:700])
    library[56:58] = bytes(2)  # e_phnum
    return bytes(library)


def _members(bundle: Path) -> Members:
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(path: Path, members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _with_manifest(bundle: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    members = _members(bundle)
    manifest = json.loads(members["manifest.json"])
    change(manifest)
    members["manifest.json"] = json.dumps(manifest).encode()
    return _write(path, members)


def test_round_trip(affine: Model, affine_bundle: Path) -> None:
    bundle = read_bundle(affine_bundle)
    assert replace(bundle.manifest, members={}) == affine.manifest
    assert bundle.library == affine.library.read_bytes()
    assert list(bundle.weights) == list(affine.weights)
    for key, tensor in bundle.weights.items():
        np.testing.assert_array_equal(tensor.array, affine.weights[key])
        assert tensor.array.ctypes.data % 64 == 0
    assert read_manifest(affine_bundle) == bundle.manifest


def test_same_model_same_bytes(affine: Model, affine_bundle: Path, tmp_path: Path) -> None:
    assert affine.save(tmp_path / "again.whet").read_bytes() == affine_bundle.read_bytes()


def test_other_tools_read_it(affine: Model, affine_bundle: Path) -> None:
    """An ordinary zip whose weights the safetensors package reads."""
    import safetensors.numpy

    with zipfile.ZipFile(affine_bundle) as archive:
        assert archive.testzip() is None
        assert {item.compress_type for item in archive.infolist()} == {zipfile.ZIP_STORED}
        weights = safetensors.numpy.load(archive.read("weights.safetensors"))
    for key, array in affine.weights.items():
        np.testing.assert_array_equal(weights[key], array)


def test_written_by_another_zip_tool(affine_bundle: Path, tmp_path: Path) -> None:
    """The same members, stored again by Python's zipfile, are accepted: the refusals below are of what is
    wrong.
    """
    read_bundle(_write(tmp_path / "m.whet", _members(affine_bundle)))


def test_a_flip_of_any_byte_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.whet"
    path.write_bytes(small)
    read_bundle(path)
    survivors = []
    for position in range(len(small)):
        damaged = bytearray(small)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            read_bundle(path)
        except BundleError:
            continue
        survivors.append(position)
    # The permissions and the archiver that a zip entry records mean nothing, and some of their values are
    # valid.
    start = small.index(b"PK\x01\x02")
    meaningless = {offset for offset in _entry_offsets(small, start) for offset in range(offset, offset + 46)}
    assert set(survivors) <= meaningless and len(survivors) < 6


def _entry_offsets(data: bytes, start: int) -> Iterator[int]:
    while (start := data.find(b"PK\x01\x02", start)) >= 0:
        yield start
        start += 1


@pytest.mark.parametrize("name", ["lib.so", "weights.safetensors", "manifest.json"])
def test_a_changed_member_is_named(affine_bundle: Path, tmp_path: Path, no_code: None, name: str) -> None:
    """...even where the zip's own checksum was made to fit."""
    members = _members(affine_bundle)
    data = bytearray(members[name])
    data[-5] ^= 0x10
    members[name] = bytes(data)
    with pytest.raises(BundleError, match=r"lib\.so|weights|manifest") as caught:
        load(_write(tmp_path / "m.whet", members))
    assert "m.whet" in str(caught.value)
    if name != "manifest.json":
        assert name in str(caught.value) and "sha256" in str(caught.value)


def test_every_truncation_is_refused(small: bytes, tmp_path: Path, no_code: None) -> None:
    path = tmp_path / "m.whet"
    for length in range(len(small)):
        if length % 7 and length < len(small) - 60:
            continue
        path.write_bytes(small[:length])
        with pytest.raises(BundleError, match="not a whole bundle"):
            load(path)


def test_bytes_added_are_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.whet"
    at = small.index(b"PK\x03\x04", 4)
    for data in (small + b"\0", b"#!/bin/sh\n" + small, small[:at] + b"gap" + small[at:]):
        path.write_bytes(data)
        with pytest.raises(BundleError, match="not a whole bundle"):
            read_bundle(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06" + b"\0" * 18, os.urandom(4096)])
def test_no_bundle_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.whet").write_bytes(content)
    with pytest.raises(BundleError, match="not a whole bundle"):
        load(tmp_path / "m.whet")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.whet"):
        load(tmp_path / "none.whet")
    with pytest.raises(BundleError, match="folder"):
        load(tmp_path)
    with pytest.raises(BundleError, match="no regular file"):
        load("/dev/null")


def test_newer_format_says_upgrade(affine_bundle: Path, tmp_path: Path, no_code: None) -> None:
    """Of a newer format nothing is believed but its number."""

    def change(manifest: dict[str, Any]) -> None:
        manifest.clear()
        manifest["format_version"] = 99

    with pytest.raises(BundleError, match=r"format version 99.*[Uu]pgrade whet"):
        load(_with_manifest(affine_bundle, tmp_path / "m.whet", change))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("arch", "riscv64", "riscv64.*this device is"),
        ("os", "darwin", "darwin.*this device is"),
        ("features", ["avx512quantum"], "avx512quantum.*which this one has not"),
    ],
)
def test_another_device(affine_bundle: Path, tmp_path: Path, no_code: None, field: str, value: Any, words: str) -> None:
    path = _with_manifest(
        affine_bundle, tmp_path / "m.whet", lambda manifest: manifest["target"].update({field: value})
    )
    with pytest.raises(BundleError, match=words):
        load(path)
    if field != "arch":
        read_bundle(path, for_this_host=False)


def test_missing_cpu_feature(affine: Model, tmp_path: Path, no_code: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX-512 code on a processor without it would die by SIGILL."""
    manifest = replace(affine.manifest, target=host_target(features=("avx2", "avx512vnni")))
    write_bundle(tmp_path / "m.whet", manifest, affine.library, affine.weights)
    monkeypatch.setattr(host.cpu, "host_features", lambda: frozenset({"avx2"}))
    with pytest.raises(BundleError, match="processor with avx512vnni"):
        load(tmp_path / "m.whet")


def test_library_of_another_machine(affine: Model, tmp_path: Path, no_code: None) -> None:
    for content, words in (
        (b"MZ" + bytes(100), "not an ELF"),
        (b"\x7fELF\2\1" + bytes(100), "another machine"),
        (b"\x7fELF\2\1" + bytes(26) + b"\xff" * 32, "not an ELF"),
    ):
        (tmp_path / "lib.so").write_bytes(content)
        write_bundle(tmp_path / "m.whet", affine.manifest, tmp_path / "lib.so", affine.weights)
        with pytest.raises(BundleError, match=words):
            load(tmp_path / "m.whet")


def test_library_that_cannot_be_loaded(affine: Model, tmp_path: Path) -> None:
    """Cut off (the system's loader would let the process die), in want of a symbol, or without a model."""
    library = tmp_path / "lib.so"
    source = tmp_path / "lib.c"

    def refusal() -> str:
        write_bundle(tmp_path / "m.whet", affine.manifest, library, affine.weights)
        with pytest.raises(BundleError) as caught:
            load(tmp_path / "m.whet")
        return str(caught.value)

    library.write_bytes(affine.library.read_bytes()[:5000])
    assert "5000 bytes and should have" in refusal()
    for text, words in (
        ("extern int nowhere(void); int (*p)(void) = nowhere;", "nowhere"),
        ("int x;", "vm_load_executable"),
    ):
        source.write_text(text)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        message = refusal()
        assert "cannot load the code" in message and words in message


def test_duplicate_unknown_and_missing_members(affine_bundle: Path, tmp_path: Path) -> None:
    members = _members(affine_bundle)
    path = tmp_path / "m.whet"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for name in ("lib.so", "lib.so", "manifest.json"):
            archive.writestr(name, members[name])
    with pytest.raises(BundleError, match=r"'lib\.so' twice"):
        read_bundle(path)
    for name in ("../lib.so", "/lib.so", "lib.so/", "LIB.SO", "extra.py"):
        changed = {name if key == "lib.so" else key: data for key, data in members.items()}
        with pytest.raises(BundleError, match="not a whole bundle"):
            read_bundle(_write(path, changed))
        with pytest.raises(BundleError, match=r"unknown member|4 members"):
            read_bundle(_write(path, {**members, name + "x": b""}))
    del members["lib.so"]
    with pytest.raises(BundleError, match="no member"):
        read_bundle(_write(path, members))


def test_compressed_members(affine_bundle: Path, tmp_path: Path) -> None:
    """A bomb is compressed; nothing here is."""
    bomb = {**_members(affine_bundle), "lib.so": bytes(50 << 20)}
    path = _write(tmp_path / "m.whet", bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(BundleError, match="compressed"):
        read_bundle(path)


def test_huge_declared_sizes(affine_bundle: Path, tmp_path: Path) -> None:
    """Neither the zip, nor the manifest, nor the header of the weights can make the reader take memory."""
    data = affine_bundle.read_bytes()
    path = tmp_path / "m.whet"
    directory = data.index(b"PK\x01\x02")
    for offset in (20, 24):
        changed = bytearray(data)
        changed[directory + offset : directory + offset + 4] = b"\xfe\xff\xff\xff"
        path.write_bytes(changed)
        with pytest.raises(BundleError, match="two sizes"):
            read_bundle(path)
    with pytest.raises(BundleError, match="the manifest says"):
        read_bundle(
            _with_manifest(affine_bundle, path, lambda manifest: manifest["members"]["lib.so"].update(size=1 << 60))
        )
    for header in (struct.pack("<Q", 1 << 60), struct.pack("<Q", 99_000_000) + b"{}", b"\1"):
        members = {**_members(affine_bundle), "weights.safetensors": header}
        _write(path, members)

        def fit(manifest: dict[str, Any], size: int = len(header)) -> None:
            manifest["members"]["weights.safetensors"]["size"] = size

        with pytest.raises(BundleError, match="claims a header"):
            read_bundle(_with_manifest(path, tmp_path / "n.whet", fit))


def test_weights_that_the_manifest_does_not_fit(affine: Model, counter: Model, tmp_path: Path) -> None:
    for weights in ({"w": affine.weights["w"]}, {}):
        with pytest.raises(BundleError, match="'b'"):
            write_bundle(tmp_path / "m.whet", affine.manifest, affine.library, weights)
    with pytest.raises(BundleError, match=r"initial value of the state 'total' is f64\[4\]"):
        write_bundle(tmp_path / "m.whet", counter.manifest, counter.library, {**counter.weights, "total0": np.zeros(4)})
    assert list(tmp_path.iterdir()) == []


def _assert_nothing_written(folder: Path) -> None:
    assert list(folder.iterdir()) == []


def test_folder_that_is_missing_or_a_file(affine: Model, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none.*the folder does not exist"):
        affine.save(tmp_path / "none" / "m.whet")
    with pytest.raises(BundleError, match="no regular file"):
        affine.save(Path("/dev/full"))
    assert Path("/dev/full").is_char_device()
    with pytest.raises(BundleError, match="it is a folder"):
        affine.save(tmp_path)
    with pytest.raises(BundleError, match="too long"):
        affine.save(tmp_path / ("n" * 300))
    _assert_nothing_written(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="a file, not a folder"):
        affine.save(tmp_path / "file" / "m.whet")
    with pytest.raises(BundleError, match=r"no compiled library .*none\.so"):
        write_bundle(tmp_path / "m.whet", affine.manifest, tmp_path / "none.so", affine.weights)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_errors_while_writing(affine: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """At the very end, when all bytes are written: nothing is left, and what was there before is whole."""

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "m.whet").write_bytes(b"the old one")
    monkeypatch.setattr(bundle_module.os, "fsync", fail)
    with pytest.raises(BundleError, match=r"cannot write .*m\.whet: ."):
        affine.save(tmp_path / "m.whet")
    assert [item.name for item in tmp_path.iterdir()] == ["m.whet"]
    assert (tmp_path / "m.whet").read_bytes() == b"the old one"


def test_file_size_limit(affine: Model, tmp_path: Path) -> None:
    """The system stops the writing in the middle of a member."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(BundleError, match=r"m\.whet.*larger than the system allows"):
            affine.save(tmp_path / "m.whet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    _assert_nothing_written(tmp_path)


def test_full_disk(affine: Model, tmp_path: Path) -> None:
    """A disk of 64 KB: the first bundle fits, a larger one does not and leaves the first."""
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        small = tmp_path / "lib.so"
        small.write_bytes(_tiny_library(affine))
        write_bundle(tmp_path / "m.whet", affine.manifest, small, affine.weights)
        before = (tmp_path / "m.whet").read_bytes()
        with pytest.raises(BundleError, match=r"m\.whet: the disk is full: free some space"):
            write_bundle(
                tmp_path / "m.whet",
                affine.manifest,
                small,
                {**affine.weights, "big": np.random.default_rng(0).integers(0, 256, 100_000, "u1")},
            )
        assert sorted(item.name for item in tmp_path.iterdir()) == ["lib.so", "m.whet"]
        assert (tmp_path / "m.whet").read_bytes() == before
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_permissions_and_links(affine: Model, tmp_path: Path) -> None:
    """The file is as readable as any the user writes, and a link is followed, not replaced."""
    (tmp_path / "link.whet").symlink_to("real.whet")
    mask = os.umask(0o022)
    try:
        affine.save(tmp_path / "link.whet")
    finally:
        os.umask(mask)
    assert (tmp_path / "link.whet").is_symlink()
    assert (tmp_path / "real.whet").stat().st_mode & 0o777 == 0o644


def test_nothing_is_left_in_the_temporary_folder(affine_bundle: Path, tmp_path: Path, on_device: DeviceRun) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    code = """
        import whet
        from whet.errors import BundleError
        try:
            print(whet.load(sys.argv[1]))
        except BundleError as error:
            print(error)
        """
    assert "whet module" in on_device(code, affine_bundle, TMPDIR=str(folder))
    _assert_nothing_written(folder)


def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    """zip64: sizes and places beyond 32 bits, as Python's zipfile writes them (a sparse file, nothing is
    read).
    """
    sizes = {"a": 5 << 30, "b": 3}
    with (tmp_path / "m.zip").open("w+b") as file:
        with zipfile.ZipFile(_Sparse(file), "w") as archive:
            for name, size in sizes.items():
                with archive.open(zipfile.ZipInfo(name), "w", force_zip64=size > 1 << 31) as member:
                    for begin in range(0, size, _Sparse.zeros.nbytes):
                        member.write(_Sparse.zeros[: min(size - begin, _Sparse.zeros.nbytes)].data)
        file.flush()
        members = read_container(file, os.fstat(file.fileno()).st_size, frozenset(sizes))
    assert {name: item.size for name, item in members.items()} == sizes
    assert members["b"].offset > 5 << 30


class _Sparse:
    """A file in which blocks of zeros are holes."""

    zeros = np.zeros(64 << 20, np.uint8)

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        if len(data) < 1 << 20:
            return int(self._file.write(data))
        self._file.seek(len(data), os.SEEK_CUR)
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
