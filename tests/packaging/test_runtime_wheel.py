"""The wheel of TVM's runtime: what is in it, and that it is the same whenever and from whatever it is made."""

from __future__ import annotations

import json
import re
import shutil
import time
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.tags import parse_tag
from packaging.utils import parse_wheel_filename
from wheel.wheelfile import WheelFile

from whet.cli import main
from whet.errors import TargetError
from whet.runtime import pins
from whet.runtime_wheel import make_runtime_wheel

TVM_SITE = Path(str(distribution("apache-tvm").locate_file("")))


def test_it_holds_the_library_and_its_licenses(runtime_wheel: Path) -> None:
    info = f"whet_runtime-{pins.TVM}.dist-info"
    # Checks everything that is read against the record.
    with WheelFile(runtime_wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    library = contents.pop("whet_runtime/lib/libtvm_runtime.so")
    assert library == (TVM_SITE / "tvm" / "lib" / "libtvm_runtime.so").read_bytes()
    assert set(contents) == {
        "whet_runtime/__init__.py",
        *(f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD")),
        *(f"{info}/licenses/{name}" for name in ("LICENSE", "NOTICE", "LICENSE.builtin_fp16.txt")),
    }
    assert b"Apache License" in contents[f"{info}/licenses/LICENSE"]
    metadata = Metadata.from_email(contents[f"{info}/METADATA"])
    assert (metadata.name, str(metadata.version)) == ("whet-runtime", pins.TVM)
    assert [str(item) for item in metadata.requires_dist or ()] == [f"apache-tvm-ffi=={pins.TVM_FFI}"]
    assert runtime_wheel.stat().st_size < 2e6


def test_its_tags_are_those_of_tvm(runtime_wheel: Path) -> None:
    lines = (distribution("apache-tvm").read_text("WHEEL") or "").splitlines()
    wanted = {tag for line in lines if line.startswith("Tag: ") for tag in parse_tag(line.removeprefix("Tag: "))}
    name, version, _, tags = parse_wheel_filename(runtime_wheel.name)
    assert (name, str(version), tags) == ("whet-runtime", pins.TVM, wanted)


def test_the_same_bytes_at_any_time(runtime_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setattr(time, "time", lambda: 1.8e9)
    again = make_runtime_wheel(tmp_path, TVM_SITE)
    assert again.name == runtime_wheel.name
    assert again.read_bytes() == runtime_wheel.read_bytes()


@pytest.mark.parametrize("file", ["pyproject.toml", "cpp/CMakeLists.txt", "tests/arm/setup"])
def test_the_pins_are_the_same_everywhere(repository: Path, file: str) -> None:
    found = re.findall(r"(apache-tvm(?:-ffi)?)==([\w.]+\w)", (repository / file).read_text())
    assert set(found) == {("apache-tvm", pins.TVM), ("apache-tvm-ffi", pins.TVM_FFI)}


def fake_tvm(folder: Path, version: str) -> Path:
    """TVM installed in a folder, as far as the wheel is made of it."""
    info = folder / f"apache_tvm-{version}.dist-info"
    info.mkdir(parents=True)
    for name in ("RECORD", "WHEEL"):
        shutil.copy(TVM_SITE / f"apache_tvm-{pins.TVM}.dist-info" / name, info)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: apache-tvm\nVersion: {version}\n")
    for name in ("LICENSE", "NOTICE", "licenses/LICENSE.builtin_fp16.txt", "lib/libtvm_runtime.so"):
        (folder / "tvm" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TVM_SITE / "tvm" / name, folder / "tvm" / name)
    return folder


def test_what_it_cannot_be_made_of(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="has no apache-tvm"):
        make_runtime_wheel(tmp_path, tmp_path)
    with pytest.raises(TargetError, match="not both"):
        make_runtime_wheel(tmp_path, tmp_path, "manylinux_2_28_aarch64")
    with pytest.raises(TargetError, match=f"0.1 is not the {pins.TVM}"):
        make_runtime_wheel(tmp_path, fake_tvm(tmp_path / "old", "0.1"))
    damaged = fake_tvm(tmp_path / "damaged", pins.TVM)
    with (damaged / "tvm" / "lib" / "libtvm_runtime.so").open("ab") as library:
        library.write(b"more")
    with pytest.raises(TargetError, match=r"libtvm_runtime.so of apache-tvm is damaged"):
        make_runtime_wheel(tmp_path, damaged)
    (damaged / "tvm" / "NOTICE").unlink()
    (damaged / "tvm" / "lib" / "libtvm_runtime.so").unlink()
    with pytest.raises(TargetError, match=r"libtvm_runtime.so of apache-tvm is missing"):
        make_runtime_wheel(tmp_path, damaged)
    assert list(tmp_path.glob("*.whl")) == []


def test_the_command(tmp_path: Path, runtime_wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runtime-wheel", str(TVM_SITE), "--out", str(tmp_path)]) == 0
    assert runtime_wheel.name in capsys.readouterr().out
    assert main(["runtime-wheel", str(TVM_SITE), "--out", str(tmp_path), "--json"]) == 0
    made = {"wheel": str(tmp_path / runtime_wheel.name), "bytes": runtime_wheel.stat().st_size}
    assert json.loads(capsys.readouterr().out) == made
    assert (tmp_path / runtime_wheel.name).read_bytes() == runtime_wheel.read_bytes()
    assert main(["runtime-wheel", str(tmp_path)]) == 1
    assert "has no apache-tvm" in capsys.readouterr().err
