"""The emulated device is what the other tests marked `arm` take it for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.arm

AT_HWCAP = 16
HWCAP_ASIMD = 1 << 1
HWCAP_ASIMDDP = 1 << 20


def on_device(device: Path, core: str, code: str) -> str:
    """Standard output of Python code on an emulated core."""
    done = subprocess.run(
        [device / "py64", "-c", code],
        env={**os.environ, "QCPU": core},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("core", "dotprod"), [("cortex-a72", False), ("cortex-a76", True)])
def test_a_core_has_its_own_features(arm_device: Path, core: str, dotprod: bool) -> None:
    code = f"import ctypes, platform; print(platform.machine(), ctypes.CDLL(None).getauxval({AT_HWCAP}))"
    machine, features = on_device(arm_device, core, code).split()
    assert machine == "aarch64"
    assert int(features) & HWCAP_ASIMD
    assert bool(int(features) & HWCAP_ASIMDDP) is dotprod


def test_it_has_the_runtime_and_neither_compiler_nor_torch(arm_device: Path) -> None:
    code = (
        "import importlib.util as u, pathlib\n"
        "library = pathlib.Path(u.find_spec('tvm').origin).parent / 'lib'\n"
        "print(u.find_spec('torch'), sorted(path.name for path in library.glob('libtvm_*.so')))"
    )
    assert on_device(arm_device, "cortex-a72", code) == ("None ['libtvm_runtime.so', 'libtvm_runtime_extra.so']")
