"""Mutated bundles: no crash, no bad access, and the verdict that the Python runtime gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.cpp.fat_mutations import mutated_fat, variant
from tests.cpp.mutations import mutated
from tests.cpp.programs import Programs
from tests.cpp.verdicts import python_verdict
from tests.runtime.conftest import Model
from whet.runtime import write_bundle

pytestmark = pytest.mark.timeout(1200)

Mutated = Callable[[int], bytes]

_BATCH = 500
# What one version of libzstd calls corrupt another expands to other bytes (1.5.4 and 1.5.7 do): only the checksum of
# the member tells damage, and it was made to fit here.
_CORRUPT = "Data corruption detected"


@pytest.fixture(scope="module")
def small(shrunk: Model, canary: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A bundle of a few KB: its library has the headers of a real one, and no segments."""
    folder = tmp_path_factory.mktemp("small")
    library = bytearray(canary.read_bytes()[:200])
    library[56:58] = bytes(2)  # e_phnum
    (folder / "lib.so").write_bytes(library)
    write_bundle(folder / "m.whet", shrunk.manifest, folder / "lib.so", shrunk.weights)
    return (folder / "m.whet").read_bytes()


def fuzz(make: Mutated, programs: Programs, folder: Path, first: int, count: int) -> dict[str, int]:
    """Numbers of each verdict; fails on a crash, and where the languages disagree."""
    tally: dict[str, int] = {}
    differences = []
    for begin in range(first, first + count, _BATCH):
        seeds = range(begin, min(begin + _BATCH, first + count))
        paths = [folder / str(seed % _BATCH) for seed in seeds]
        for seed, path in zip(seeds, paths, strict=True):
            path.write_bytes(make(seed))
        verdicts = programs.verdicts("verify", paths, ASAN_OPTIONS="allocator_may_return_null=1")
        for seed, path, (status, message) in zip(seeds, paths, verdicts, strict=True):
            expected, words = python_verdict(path)
            tally[status] = tally.get(status, 0) + 1
            if status != expected and not (status == "ok" and _CORRUPT in words):
                differences.append(f"seed {seed}: C++ {status} ({message}); Python {expected} ({words})")
    assert not differences, "\n".join(differences[:20])
    return tally


def test_a_few_hundred(small: bytes, sanitized: Programs, tmp_path: Path) -> None:
    tally = fuzz(partial(mutated, small), sanitized, tmp_path, 0, 400)
    assert tally["damaged"] > 300 and tally["ok"] > 0


def variants(small: bytes) -> tuple[bytes, ...]:
    """For another machine, for this one, and for one that has more."""
    return (
        variant(small, "cortex-a76", arch="aarch64", features=["neon", "dotprod"]),
        small,
        variant(small, "later", features=["avx512quantum"]),
    )


def test_a_few_hundred_fat_ones(small: bytes, sanitized: Programs, tmp_path: Path) -> None:
    tally = fuzz(partial(mutated_fat, variants(small)), sanitized, tmp_path, 0, 400)
    assert tally["damaged"] > 200 and tally["ok"] > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_fat_ones(small: bytes, sanitized: Programs, tmp_path: Path) -> None:
    fuzz(partial(mutated_fat, variants(small)), sanitized, tmp_path, 1000, 5_000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand(small: bytes, sanitized: Programs, tmp_path: Path) -> None:
    tally = fuzz(partial(mutated, small), sanitized, tmp_path, 1000, 10_000)
    assert sum(tally.values()) == 10_000
