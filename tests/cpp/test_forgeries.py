"""Changed, stolen and exchanged bundles are refused alike in Python and C++, before any code is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.cpp.forgeries import Bundles, Forgery, Keys, forgeries
from tests.runtime.conftest import Model
from whet.errors import BundleError, DecryptionError, SignatureError
from whet.runtime import load, read_bundle
from whet.runtime.safetensors import RawTensor

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def cases(shrunk: Model, canary: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Forgery, Path]]:
    """The table, with the bundles as files; their library tells when it is loaded, and has several chunks."""
    folder = tmp_path_factory.mktemp("forgeries")
    library = folder / "lib.so"
    # What follows the sections of an ELF file is not looked at.
    library.write_bytes(canary.read_bytes() + np.random.default_rng(0).bytes(150_000))
    keys = Keys.make(folder)
    weights = {key: RawTensor.of(item) for key, item in shrunk.weights.items()}
    found = list(forgeries(Bundles.make(folder, shrunk.manifest, library, weights, keys), keys, folder))
    paths = [folder / f"{index}.whet" for index in range(len(found))]
    for case, path in zip(found, paths, strict=True):
        path.write_bytes(case.data)
    return list(zip(found, paths, strict=True))


def status_of(error: BundleError) -> str:
    """The status of the C API for an error of the Python runtime."""
    kinds = {SignatureError: "not trusted", DecryptionError: "wrong key"}
    return kinds.get(type(error), "newer format" if "format version" in str(error) else "damaged")


def test_python(cases: list[tuple[Forgery, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, sung = tmp_path / "temporary", tmp_path / "sung"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("WHET_CANARY", str(sung))
    assert len(cases) > 100
    wrong = []
    for case, path in cases:
        if case.status == "ok":
            read_bundle(path, trusted=case.trusted, key=case.key)
            continue
        try:
            load(path, trusted=case.trusted, key=case.key)
            wrong.append(f"{case.name}: loaded")
        except BundleError as error:
            if status_of(error) != case.status or not re.search(case.words, str(error)) or ".whet" not in str(error):
                wrong.append(f"{case.name}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
    assert not sung.exists()
    assert list(temporary.iterdir()) == []
