"""What pip puts on a device: a fresh environment for each runtime, its downloads and what they take there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from whet.runtime_wheel import make_runtime_wheel

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Requirements:
    """What is installed: `whole` with all that it requires, `alone` without."""

    whole: tuple[str, ...]
    alone: tuple[str, ...] = ()


@dataclass(frozen=True)
class Installed:
    """An environment: its interpreter, the folder and number of its packages, megabytes of their wheels and files."""

    python: Path
    site: Path
    packages: int
    download_megabytes: float
    installed_megabytes: float


def pinned(package: str) -> str:
    """The package in the version that is installed here, without the part that names the index it came from."""
    return f"{package}=={version(package).partition('+')[0]}"


def whet_wheels(folder: Path) -> tuple[str, ...]:
    """Whet's two wheels for a device, made of this repository and of the installed apache-tvm."""
    copy = folder / "source"
    # setuptools leaves its build folders beside what it reads.
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "tests", "benchmarks")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    _pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(copy))
    (wheel,) = folder.glob("whet-*.whl")
    return str(wheel), str(make_runtime_wheel(folder))


def install(requirements: Requirements, folder: Path) -> Installed:
    """Make the environment. Raises RuntimeError with pip's words where it cannot be."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    binary = ("--only-binary=:all:", "--dest", str(wheels))
    _pip("download", *binary, *requirements.whole)
    if requirements.alone:
        _pip("download", *binary, "--no-deps", *requirements.alone)
    environment = folder / "venv"
    python = environment / "bin" / "python"
    _run([sys.executable, "-m", "venv", "--without-pip", str(environment)])
    found = sorted(map(str, wheels.glob("*.whl")))
    _pip("--python", str(python), "install", "--no-compile", "--no-index", "--no-deps", *found)
    (site,) = environment.glob("lib/python*/site-packages")
    return Installed(python, site, len(list(site.glob("*.dist-info"))), megabytes(wheels), megabytes(site))


def megabytes(path: Path) -> float:
    """Size of a file, or of the files below a folder, in 10^6 bytes."""
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    return sum(item.stat().st_size for item in files) / 1e6


def _pip(*arguments: str) -> None:
    _run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError("; ".join(line for line in lines if line.startswith("ERROR")) or lines[-1])
