"""CUDA source to device code, by the toolkit's compiler."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tvm_ffi

from whet.errors import TargetError
from whet.ir.target import Target
from whet.runtime.device_code import as_text

# TVM gives it the source of a module and keeps what it returns.
CALLBACK = "tvm_callback_cuda_postproc"


@contextmanager
def compiling_for(target: Target) -> Iterator[None]:
    """While this is open, TVM keeps machine code that nvcc made for `target`; else it would keep source.

    Raises TargetError where nvcc is not installed.
    """
    if target.kind != "cuda":
        yield
        return
    if shutil.which("nvcc") is None:
        raise TargetError(
            f"{target.name}: nvcc is not on the PATH. Install the CUDA toolkit (no GPU is needed to compile), or "
            "compile for a CPU target"
        )
    tvm_ffi.register_global_func(CALLBACK, lambda code, _: as_text(device_code(code, target)), override=True)
    try:
        yield
    finally:
        tvm_ffi.remove_global_func(CALLBACK)


def device_code(source: str, target: Target) -> bytes:
    """A fat binary: machine code for the target's architecture, and its PTX for later ones.

    Multiplications and additions are not contracted (numerics: R4). Raises TargetError with nvcc's words.
    """
    assert target.device_arch is not None
    virtual = target.device_arch.replace("sm_", "compute_")
    with tempfile.TemporaryDirectory(prefix="whet-nvcc-") as folder:
        code, binary = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        code.write_text(source)
        command = [
            "nvcc",
            "-fatbin",
            "-O3",
            "--fmad=false",
            f"-gencode=arch={virtual},code=[{target.device_arch},{virtual}]",
            "-o",
            str(binary),
            str(code),
        ]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise TargetError(f"nvcc could not compile for {target.name}:\n{finished.stderr}")
        return binary.read_bytes()
