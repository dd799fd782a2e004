"""The wheels that a device installs, and an environment that holds what they require and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.runtime.conftest import affine, affine_bundle
from whet.runtime_wheel import make_runtime_wheel

__all__ = ["affine", "affine_bundle"]

SOURCES = ("frontend", "ir", "passes", "backends", "src")
# What the two wheels require, and what that requires.
REQUIRED = ("numpy", "apache-tvm-ffi", "typing-extensions", "zstandard")


def run(command: list[str], cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def whet_wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools leaves build folders beside what it reads."""
    copy = tmp_path_factory.mktemp("clone")
    for name in SOURCES:
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(repository / name, copy / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(repository / name, copy / name)
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    run([sys.executable, "-m", "pip", *build], copy)
    (built,) = (copy / "dist").glob("whet-*.whl")
    return built


@pytest.fixture(scope="session")
def runtime_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TVM's runtime alone, out of the apache-tvm that is installed here."""
    return make_runtime_wheel(tmp_path_factory.mktemp("runtime"))


def link_required(site: Path) -> None:
    """Put what a device needs besides the two wheels into a folder, as links to what is installed here."""
    for name in REQUIRED:
        found = distribution(name)
        for top in sorted({file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}):
            (site / top).symlink_to(Path(str(found.locate_file(top))))


@pytest.fixture(scope="session")
def device_python(whet_wheel: Path, runtime_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment with whet, whet-runtime and what they require: neither torch nor the compiler."""
    environment = tmp_path_factory.mktemp("device") / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", str(environment)], environment.parent)
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/python*/site-packages")
    link_required(site)
    install = ["install", "-q", "--no-index", "--no-deps", str(whet_wheel), str(runtime_wheel)]
    run([sys.executable, "-m", "pip", "--python", str(python), *install], environment)
    return python
