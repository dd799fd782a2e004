"""The wheel holds every module behind the links, and each of them imports away from the repository."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.conftest import SOURCES, run

IMPORT_ALL = """
import importlib, json, pkgutil, whet

def fail(name):
    raise ImportError(f"cannot import {name}")

names = [found.name for found in pkgutil.walk_packages(whet.__path__, "whet.", onerror=fail)]
names = [name for name in names if not name.endswith("__main__")]
files = {name: importlib.import_module(name).__file__ for name in ["whet", *names]}
print(json.dumps(files))
"""


@pytest.fixture(scope="module")
def installed(whet_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel and nothing else of this project."""
    site = tmp_path_factory.mktemp("site")
    run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(whet_wheel)], site)
    return site


def test_every_source_file_is_in_the_wheel(repository: Path, whet_wheel: Path) -> None:
    expected = {
        str(Path("whet") / path.relative_to(repository))
        for folder in SOURCES[:-1]
        for path in (repository / folder).rglob("*.py")
    }
    face = repository / "src" / "whet"
    expected |= {f"whet/{path.name}" for path in face.glob("*.py")} | {"whet/py.typed"}
    expected |= {str(path.relative_to(repository / "src")) for path in (face / "runtime").rglob("*.py")}
    packed = {name for name in zipfile.ZipFile(whet_wheel).namelist() if ".dist-info/" not in name}
    assert expected - packed == set(), "left out of the wheel: does a folder lack its __init__.py?"
    assert {name for name in packed if not name.startswith("whet/")} == set()


def test_every_module_imports_from_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    files = json.loads(run([sys.executable, "-c", IMPORT_ALL], tmp_path, PYTHONPATH=str(installed)))
    assert {"whet.ir", "whet.passes", "whet.frontend", "whet.backends", "whet.runtime"} <= files.keys()
    elsewhere = {name: file for name, file in files.items() if not Path(file).is_relative_to(installed)}
    assert elsewhere == {}


def test_the_base_install_is_small(whet_wheel: Path) -> None:
    archive = zipfile.ZipFile(whet_wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    required = [
        line.removeprefix("Requires-Dist: ")
        for line in archive.read(metadata).decode().splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    names = {requirement.split("=")[0].split("<")[0].split(">")[0].strip() for requirement in required}
    assert names == {"numpy", "apache-tvm-ffi", "zstandard"}
