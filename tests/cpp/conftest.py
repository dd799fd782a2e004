"""The C++ runtime, built once and kept in .cache/cpp; and small bundles for it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.conftest import Model, affine, affine_bundle, counter, counter_bundle
from whet.runtime import write_bundle

__all__ = ["affine", "affine_bundle", "counter", "counter_bundle"]

# A library that leaves a file behind wherever it is loaded.
CANARY = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void sing(void) {
  const char* path = getenv("WHET_CANARY");
  FILE* file = path ? fopen(path, "w") : 0;
  if (file) fclose(file);
}
"""


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
def sanitized(repository: Path) -> Programs:
    """The build that stops at the first bad access to memory and the first undefined operation."""
    return Programs(build(repository, "sanitized", "-DWHET_SANITIZE=ON", "-DWHET_EXAMPLES=OFF"))


@pytest.fixture(scope="session")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that creates the file WHET_CANARY as soon as it is loaded."""
    folder = tmp_path_factory.mktemp("canary")
    (folder / "canary.c").write_text(CANARY)
    subprocess.run(["cc", "-shared", "-fPIC", "-s", "-o", "canary.so", "canary.c"], cwd=folder, check=True)
    return folder / "canary.so"


@pytest.fixture(scope="session")
def shrunk(affine: Model) -> Model:
    """The affine model with weights more that are stored packed, in each of the forms."""
    generator = np.random.default_rng(0)
    kept = np.where(generator.random((64, 64)) < 0.1, generator.choice(np.linspace(-1, 1, 7), (64, 64)), 0)
    dense = generator.choice(np.linspace(-1, 1, 13, dtype="f4"), (40, 50))
    sparse = np.where(generator.random(4000) < 0.5, generator.normal(size=4000), 0).astype("f4")
    more = {"kept": kept.astype("f4"), "dense": dense, "twin": dense.copy(), "sparse": sparse}
    more["steps"] = np.arange(1000, dtype="i4") // 7
    return replace(affine, weights={**affine.weights, **more})


@pytest.fixture(scope="session")
def shrunk_bundle(shrunk: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with all four members."""
    return shrunk.save(tmp_path_factory.mktemp("bundle") / "shrunk.whet")


@pytest.fixture(scope="session")
def canary_bundle(shrunk: Model, canary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with all four members whose library tells when it is loaded."""
    path = tmp_path_factory.mktemp("bundle") / "canary.whet"
    write_bundle(path, shrunk.manifest, canary, shrunk.weights)
    return path
