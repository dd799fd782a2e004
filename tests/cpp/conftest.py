"""The C++ runtime, built once and kept in .cache/cpp; and small bundles for it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.cpp.programs import Programs, build, cross, plain
from tests.runtime.conftest import Model, affine, affine_bundle, counter, counter_bundle
from whet.runtime import write_bundle

__all__ = ["affine", "affine_bundle", "counter", "counter_bundle", "cross", "plain"]

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
