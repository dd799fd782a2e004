"""What is wrong is refused alike in Python and C++, before any code is loaded or anything written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.cpp.fat_mutations import fat_refusals
from tests.cpp.mutations import refusals
from tests.cpp.programs import Programs
from whet.errors import BundleError
from whet.runtime import load

pytestmark = pytest.mark.timeout(1200)


def test_every_refusal(canary_bundle: Path, plain: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = canary_bundle.read_bytes()
    cases = [*refusals(bundle), *fat_refusals(bundle)]
    assert len(cases) > 120
    folder, temporary, sung = tmp_path / "bundles", tmp_path / "temporary", tmp_path / "sung"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("WHET_CANARY", str(sung))
    paths = []
    for index, case in enumerate(cases):
        paths.append(folder / f"{index}.whet")
        paths[-1].write_bytes(case.data)
    for command in ("verify", "open"):
        for case, (status, message) in zip(cases, plain.verdicts(command, paths), strict=True):
            assert status == case.status, f"{case.name}: {status}: {message}"
            assert re.search(case.words, message), f"{case.name}: {message}"
            assert ".whet" in message
    for case, path in zip(cases, paths, strict=True):
        with pytest.raises(BundleError) as caught:
            load(path)
        assert re.search(case.words, str(caught.value)), f"{case.name}: {caught.value}"
    assert not sung.exists()
    assert list(temporary.iterdir()) == []
    assert sorted(folder.iterdir()) == sorted(paths)
    assert set(tmp_path.iterdir()) == {folder, temporary}


def test_the_canary_sings(canary_bundle: Path, plain: Programs, tmp_path: Path) -> None:
    """Otherwise the test above would say nothing."""
    ((status, message),) = plain.verdicts("open", [canary_bundle], WHET_CANARY=str(tmp_path / "sung"))
    assert (tmp_path / "sung").exists()
    assert status == "cannot load" and "vm_load_executable" in message
    ((status, _),) = plain.verdicts("verify", [canary_bundle], WHET_CANARY=str(tmp_path / "again"))
    assert status == "ok" and not (tmp_path / "again").exists()


def test_what_is_no_file(plain: Programs, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    paths = [tmp_path / "none", tmp_path, Path("/dev/null"), tmp_path / "pipe"]
    verdicts = plain.verdicts("open", paths)
    assert {status for status, _ in verdicts} == {"cannot read"}
    assert "no such file" in verdicts[0][1]
    assert all("no regular file" in message for _, message in verdicts[1:])
