"""Builds of the C++ runtime, made once and kept in .cache/cpp, and how their programs are run."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Programs:
    """A build of the C++ runtime; `prefix` is what starts its programs (an emulator)."""

    folder: Path
    prefix: tuple[str, ...] = ()

    def run(
        self,
        program: str,
        *args: str | Path,
        lines: Sequence[str | Path] = (),
        prefix: Sequence[str] = (),
        timeout: int = 240,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the build; `lines` are its input."""
        return subprocess.run(
            [*prefix, *self.prefix, str(self.folder / program), *map(str, args)],
            input="".join(f"{line}\n" for line in lines),
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def output(self, program: str, *args: str | Path, **options: str) -> str:
        """What the program prints; fails where it does not end well."""
        done = self.run(program, *args, **options)  # type: ignore[arg-type]
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def verdicts(self, command: str, paths: Sequence[Path], **environment: str) -> list[tuple[str, str]]:
        """(status, message) of each bundle, all looked at by one process."""
        done = self.run("drive", command, lines=paths, **environment)
        assert done.returncode == 0 and not done.stderr, f"{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
        found = [line.split("\t", 1) for line in done.stdout.splitlines()]
        assert len(found) == len(paths)
        return [(status, message) for status, message in found]


def runtime_of(site: Path) -> tuple[str, ...]:
    """Options that name the TVM runtime among installed packages."""
    return f"-DWHET_TVM_FFI={site / 'tvm_ffi'}", f"-DWHET_TVM_LIB={site / 'tvm' / 'lib'}"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder, and be the only one of the test processes that works in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(root: Path, name: str, *options: str, site: Path | None = None) -> Path:
    """Configure and build into .cache/cpp/NAME; what is there is used again, one process at a time.

    `site` is the folder of the packages of the device, by default those of this Python.
    """
    spec = find_spec("tvm_ffi")
    assert spec is not None and spec.origin is not None
    site = Path(spec.origin).parent.parent if site is None else site
    if shutil.which("cmake") is None:
        pytest.skip("cmake is missing: cpp/setup installs it")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("a C++ compiler is missing: cpp/setup installs one")
    folder = root / ".cache" / "cpp" / name
    with alone(folder):
        generator = ("-G", "Ninja") if shutil.which("ninja") and not (folder / "Makefile").exists() else ()
        for step in (
            ("cmake", "-S", root / "cpp", "-B", folder, "-DWHET_TESTS=ON", *runtime_of(site), *generator, *options),
            ("cmake", "--build", folder, "--parallel", "2"),
        ):
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if "nlohmann-json and zstd are needed" in done.stderr:
                pytest.skip("nlohmann-json or zstd is missing: cpp/setup installs them")
            if done.returncode:
                pytest.fail(f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}")
    return folder


@pytest.fixture(scope="session")
def plain(repository: Path) -> Programs:
    """The optimized build."""
    return Programs(build(repository, "plain"))


@pytest.fixture(scope="session")
def cross(repository: Path, arm_device: Path) -> Path:
    """Folder of the programs for AArch64, which need neither Python nor a userland."""
    sysroot = repository / ".cache" / "cpp" / "sysroot"
    with alone(sysroot):
        if not (sysroot / "usr" / "include" / "openssl").is_dir():
            subprocess.run([repository / "cpp" / "setup", sysroot], check=True, capture_output=True)
    options = ("-DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake", f"-DWHET_SYSROOT={sysroot}")
    return build(repository, "aarch64", *options, site=arm_device / "site64")


def on_core(folder: Path, core: str) -> Programs:
    """The programs for AArch64 on an emulated core."""
    return Programs(folder, ("qemu-aarch64-static", "-cpu", core, "-L", "/usr/aarch64-linux-gnu"))


# x86 processors by the emulator's names, without what it does not emulate; it has no AVX-512.
NEHALEM = "Nehalem"
HASWELL = "Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm"


def on_x86(programs: Programs, core: str) -> Programs:
    """The programs on an emulated x86 processor."""
    return Programs(programs.folder, ("qemu-x86_64-static", "-cpu", core))


def run_bundle(programs: Programs, bundle: Path, inputs: Sequence[Array], *options: str) -> list[Array]:
    """Outputs of a bundle by the example program; what it reads and writes lies beside the bundle."""
    files = [bundle.with_suffix(f".{index}.npy") for index in range(len(inputs))]
    for file, array in zip(files, inputs, strict=True):
        np.save(file, array)
    prefix = bundle.with_suffix(".out")
    printed = programs.output("run_bundle", bundle, *files, "--output", prefix, "--threads", "1", *options)
    count = sum(line.startswith("output ") for line in printed.splitlines())
    return [np.load(f"{prefix}.{index}.npy") for index in range(count)]
