"""Mutated signed and encrypted bundles, fat ones too: each is refused, or is what its owner made, in Python and C++.

What is refused is never loaded, and leaves nothing behind.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cpp.conftest import CANARY
from tests.cpp.forgeries import Keys
from tests.cpp.programs import Programs
from tests.cpp.secured_mutations import mutated_secured
from tests.cpp.verdicts import python_verdict
from tests.runtime.conftest import Model, affine_module, compile_library
from whet.errors import BundleError
from whet.runtime import join_bundles, load, read_bundle, write_bundle

pytestmark = pytest.mark.timeout(1200)

_EVERYDAY, _MANY = 150, 2_000
_BATCH = 250
# Signed, encrypted, fat.
_KINDS = {
    f"{'fat-' if fat else ''}{name}": (signed, encrypted, fat)
    for fat in (False, True)
    for name, signed, encrypted in (("signed", True, False), ("encrypted", False, True), ("both", True, True))
}


@dataclass(frozen=True)
class Kind:
    """A bundle, another of the same owner with other weights, and the keys that both are opened with."""

    path: Path
    donor: Path
    trusted: Path | None
    key: Path | None

    @property
    def keys(self) -> dict[str, Any]:
        return {"trusted": self.trusted, "key": self.key}

    def content(self, path: Path) -> tuple[Any, ...]:
        """All that a bundle says to those who have the keys."""
        found = read_bundle(path, **self.keys)
        weights = {name: (item.dtype, item.array.tobytes()) for name, item in found.weights.items()}
        # Where the members lie in the file is nothing that is told of.
        return replace(found.manifest, members={}), bytes(found.library), weights

    def outputs(self, path: Path) -> list[bytes]:
        generator = np.random.default_rng(0)
        x, mask = generator.normal(size=(8, 8)).astype("f4"), generator.random((8, 8)) < 0.5
        found = load(path, 1, **self.keys)(x, mask=mask)
        return [np.asarray(item).tobytes() for item in (found["y"], found["rest"][0])]


@dataclass(frozen=True)
class Mutants:
    """Changed bundles as files, and what Python says of each."""

    kind: Kind
    paths: list[Path]
    verdicts: list[tuple[str, str]]

    @classmethod
    def make(cls, kind: Kind, folder: Path, seeds: range) -> Mutants:
        bundle, donor = kind.path.read_bytes(), kind.donor.read_bytes()
        paths = [folder / f"{seed}.whet" for seed in seeds]
        for seed, path in zip(seeds, paths, strict=True):
            path.write_bytes(mutated_secured(bundle, donor, seed))
        return cls(kind, paths, [python_verdict(path, **kind.keys) for path in paths])

    def by_python(self, *, accepted: bool) -> list[Path]:
        return [
            path for path, (status, _) in zip(self.paths, self.verdicts, strict=True) if (status == "ok") == accepted
        ]


@pytest.fixture(scope="module")
def singing(shrunk: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model that runs, with weights stored in every form, and whose library tells when it is loaded."""
    folder = tmp_path_factory.mktemp("singing")
    (folder / "canary.c").write_text(CANARY)
    subprocess.run(["cc", "-c", "-fPIC", "-o", "canary.o", "canary.c"], cwd=folder, check=True)
    return replace(shrunk, library=compile_library(affine_module(), folder / "lib.so", [folder / "canary.o"]))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module", params=_KINDS)
def kind(request: pytest.FixtureRequest, singing: Model, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    signed, encrypted, fat = _KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    sign, encrypt = keys.ours if signed else None, keys.secret if encrypted else None
    others = {**singing.weights, "b": singing.weights["b"] + 1}
    for path, weights in ((folder / "m.whet", singing.weights), (folder / "donor.whet", others)):
        model = replace(singing, weights=weights)
        if fat:
            parts = list(_parts(model, folder, encrypt))
            join_bundles(path, parts, sign=sign, key=encrypt)
        else:
            write_bundle(path, model.manifest, model.library, weights, sign=sign, encrypt=encrypt)
    trusted = keys.ours.with_name("ours.pub") if signed else None
    return Kind(folder / "m.whet", folder / "donor.whet", trusted, encrypt)


def _parts(model: Model, folder: Path, encrypt: Path | None) -> Iterator[Path]:
    """The model for this machine between two that have what it has not."""
    # OWN is the second.
    for name, features in (("later", ("avx512quantum",)), ("x86", ()), ("latest", ("avx512quantum", "more"))):
        target = replace(model.manifest.target, name=name, features=features)
        manifest = replace(model.manifest, target=target)
        write_bundle(folder / name, manifest, model.library, model.weights, encrypt=encrypt)
        yield folder / name


@pytest.fixture(scope="module")
def some(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Mutants:
    return Mutants.make(kind, tmp_path_factory.mktemp("mutants"), range(_EVERYDAY))


@dataclass(frozen=True)
class Watch:
    """Where a library sings, and where files in between would go."""

    sung: Path
    temporary: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"WHET_CANARY": str(self.sung), "TMPDIR": str(self.temporary)}

    def check(self, *, sung: bool) -> None:
        assert self.sung.exists() == sung
        assert list(self.temporary.iterdir()) == []
        self.sung.unlink(missing_ok=True)


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    found = Watch(tmp_path / "sung", tmp_path / "temporary")
    found.temporary.mkdir()
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


def check_python(mutants: Mutants, watch: Watch) -> None:
    kind = mutants.kind
    for path in mutants.by_python(accepted=False):
        with pytest.raises(BundleError, match=r"\.whet"):
            load(path, **kind.keys)
    watch.check(sung=False)
    expected, outputs = kind.content(kind.path), kind.outputs(kind.path)
    for path in mutants.by_python(accepted=True):
        assert kind.content(path) == expected, path
        assert kind.outputs(path) == outputs, path
    watch.check(sung=True)


def check_cpp(mutants: Mutants, programs: Programs, watch: Watch) -> None:
    if programs.output("drive", "crypto") != "1\n":
        pytest.skip("libcrypto is missing: cpp/setup installs it")
    kind, before = mutants.kind, [path.read_bytes() for path in mutants.paths]

    def looked_at(paths: list[Path]) -> list[tuple[str, str]]:
        lines = ["\t".join((str(path), str(kind.trusted or "-"), str(kind.key or "-"))) for path in paths]
        environment = {**watch.environment, "ASAN_OPTIONS": "allocator_may_return_null=1"}
        done = programs.run("drive", "secured", "outputs", lines=lines, **environment)
        assert done.returncode == 0 and not done.stderr, f"{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
        found = [line.split("\t", 1) for line in done.stdout.splitlines()]
        assert len(found) == len(paths)
        return [(status, said) for status, said in found]

    said_by_python = dict(zip(mutants.paths, mutants.verdicts, strict=True))
    refused = mutants.by_python(accepted=False)
    differences = []
    for path, (status, said) in zip(refused, looked_at(refused), strict=True):
        expected, words = said_by_python[path]
        if status != expected:
            differences.append(f"{path}: C++ {status} ({said}); Python {expected} ({words})")
    assert not differences, "\n".join(differences[:20])
    watch.check(sung=False)
    accepted = [kind.path, *mutants.by_python(accepted=True)]
    found = looked_at(accepted)
    assert found[0][0] == "ok"
    assert [(path, item) for path, item in zip(accepted, found, strict=True) if item != found[0]] == []
    watch.check(sung=True)
    assert [path.read_bytes() for path in mutants.paths] == before


def test_python(some: Mutants, watch: Watch) -> None:
    check_python(some, watch)
    # Members in another order are no harm, nor is a change of what is not read: much of a fat bundle.
    assert len(some.by_python(accepted=False)) > 0.4 * _EVERYDAY and some.by_python(accepted=True)


def test_cpp(some: Mutants, sanitized: Programs, watch: Watch) -> None:
    check_cpp(some, sanitized, watch)


def test_the_other_bundle_computes_something_else(kind: Kind) -> None:
    """Otherwise to accept parts of it would not be seen."""
    assert kind.outputs(kind.donor) != kind.outputs(kind.path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands(kind: Kind, sanitized: Programs, watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "mutants").mkdir()
    for begin in range(1000, 1000 + _MANY, _BATCH):
        mutants = Mutants.make(kind, tmp_path / "mutants", range(begin, begin + _BATCH))
        check_python(mutants, watch)
        check_cpp(mutants, sanitized, watch)
        for path in mutants.paths:
            path.unlink()
