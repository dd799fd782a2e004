"""The benchmark for GPUs names what a machine lacks for it, and measures nothing then."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from benchmarks import cuda


def test_a_machine_without_a_gpu(tmp_path: Path) -> None:
    lacking = cuda.missing()
    if lacking is None:
        pytest.skip("this machine has a GPU and all that the benchmark needs")
    log = tmp_path / "log"
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        assert cuda.main(["--json", str(tmp_path / "json"), "--log", str(log)]) == cuda.NO_DEVICE
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert f"nothing was measured: {lacking}" in log.read_text()
    assert not (tmp_path / "json").exists()
