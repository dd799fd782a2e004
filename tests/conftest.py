"""What every test may use: golden files, the emulated device, one seed."""

from __future__ import annotations

import difflib
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
DEFAULT_DEVICE = ROOT / ".cache" / "arm"

Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flag that rewrites golden files in place of comparing with them."""
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/* from this run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what compiles for CUDA where there is no CUDA compiler."""
    if shutil.which("nvcc") is not None:
        return
    no_nvcc = pytest.mark.skip(reason="nvcc is not on the PATH: install the CUDA toolkit to compile for CUDA")
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            item.add_marker(no_nvcc)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start every test from the same random state, whichever ran before it on this worker."""
    random.seed(0)
    np.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return ROOT


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare a text with ``tests/golden/NAME``, or write it there under ``--update-golden``."""
    update = bool(request.config.getoption("--update-golden"))

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        text = text if text.endswith("\n") else text + "\n"
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.is_file():
            pytest.fail(f"no golden file {path.relative_to(ROOT)}: write it with `pytest --update-golden`")
        expected = path.read_text(encoding="utf-8")
        if text == expected:
            return
        before, after = expected.splitlines(True), text.splitlines(True)
        changes = "".join(difflib.unified_diff(before, after, f"golden/{name}", "this run"))
        pytest.fail(f"{changes}\nIf this change is meant: `pytest --update-golden`, and review the diff.")

    return compare


@pytest.fixture(scope="session")
def arm_device() -> Path:
    """Folder of the emulated AArch64 device; ``py64`` in it is its Python (see tests/arm/setup).

    A missing device fails: whoever selects the marker ``arm`` wants these tests to run.
    """
    device = Path(os.environ.get("WHET_ARM_DEVICE", DEFAULT_DEVICE))
    device = device if device.is_absolute() else ROOT / device
    if not (device / "py64").is_file():
        pytest.fail(f"no emulated device in {device}: run `make test-arm`, or tests/arm/setup {device}")
    return device
