"""`import whet` is cheap, and the runtime works where neither torch nor the TVM compiler is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import whet

HEAVY = ("torch", "tvm", "numpy", "tvm_ffi", "sympy", "networkx")


def run_python(code: str, cwd: Path) -> str:
    """Standard output of ``code`` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_whet_loads_nothing_heavy(tmp_path: Path) -> None:
    code = f"import sys, whet, whet.errors; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run_python(code, tmp_path) == "[]"


def test_the_runtime_needs_neither_torch_nor_the_compiler(tmp_path: Path) -> None:
    # None in sys.modules makes an import fail as if the package were not installed.
    code = (
        "import sys\n"
        "absent = ('torch', 'tvm', 'sympy', 'networkx', 'safetensors', 'rich')\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "import whet\n"
        "assert callable(whet.load)\n"
        "import whet.runtime\n"
        "print(sorted(name for name in sys.modules if name.startswith('whet.') and name.split('.')[1] in "
        "('ir', 'passes', 'frontend', 'backends')))\n"
    )
    assert run_python(code, tmp_path) == "[]"


@pytest.mark.parametrize("name", whet.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(whet, name) is not None
    assert name in dir(whet)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        whet.optimise  # noqa: B018
