"""Building an exported static program with a C compiler, and running it: on this machine, or on an emulated core."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from whet.ir.types import DType
from whet.runtime.manifest import Manifest

STRICT = "-O1 -Wall -Wextra -Wpedantic -Werror"


def build(folder: Path, *variables: str) -> Path:
    """`make` in the folder, with warnings as errors; `variables` are make's, such as "LDFLAGS=-static"."""
    checked("make", "-s", "-C", folder, f"CFLAGS={STRICT}", *variables)
    return folder / "example"


def run(
    program: Path, manifest: Manifest, calls: Sequence[Sequence[Tensor]], emulator: Sequence[str] = ()
) -> list[list[Tensor]]:
    """Outputs of each call, one after the other in one process."""
    files: list[Path] = []
    folder = program.parent / "files"
    folder.mkdir(exist_ok=True)
    for number, inputs in enumerate(calls):
        for index, tensor in enumerate(inputs):
            files.append(folder / f"{number}.in{index}")
            files[-1].write_bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        files += [folder / f"{number}.out{index}" for index in range(len(manifest.outputs))]
    checked(*emulator, program, *files)
    return [
        [_read(folder / f"{number}.out{index}", spec.dtype, spec.shape) for index, spec in enumerate(manifest.outputs)]
        for number in range(len(calls))
    ]


def _read(path: Path, dtype: str, shape: Sequence[int | str]) -> Tensor:
    data = torch.frombuffer(bytearray(path.read_bytes()) or bytearray(8), dtype=torch.uint8)
    element = DType(dtype).torch
    flat = data.view(element) if path.stat().st_size else torch.empty(0, dtype=element)
    return flat.reshape([int(dim) for dim in shape])


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal in type, shape and every bit, NaNs included."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(*(item.contiguous().reshape(-1).view(torch.uint8) for item in (left, right)))


def checked(*command: str | Path) -> str:
    """Run a command; what it printed. Raises with its words where it fails."""
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {finished.returncode}\n{finished.stdout}{finished.stderr}")
    return finished.stdout
