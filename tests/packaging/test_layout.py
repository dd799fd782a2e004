"""The four folders at the root are the packages under src/whet, and can be imported under that name only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LINKED = ("frontend", "ir", "passes", "backends")


@pytest.mark.parametrize("name", LINKED)
def test_the_link_is_relative_and_leads_to_the_root(repository: Path, name: str) -> None:
    link = repository / "src" / "whet" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{name}"
    assert link.resolve() == repository / name


@pytest.mark.parametrize("name", LINKED)
def test_a_second_copy_is_refused(repository: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "ImportError" in done.stderr, done.stderr
    assert f"whet.{name}" in done.stderr.splitlines()[-1]
