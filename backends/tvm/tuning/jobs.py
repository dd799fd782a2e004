"""A candidate on its way to the process that measures it: a folder with the kernel and what to call it with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from whet.runtime.safetensors import RawTensor

SETTINGS: Final = "job.json"
FUNCTION: Final = "function.json"
ARGUMENTS: Final = "arguments.npz"
LIBRARY: Final = "kernel.so"
EXPECTED: Final = "expected.npz"
"""Of the task: in the folder above."""
OUTPUT: Final = tuple(f"output {index}" for index in range(16))


def write_job(folder: Path, function: str, arguments: Sequence[RawTensor], settings: dict[str, Any]) -> None:
    """A job that `execute` reads; see `LocalRunner` for the settings."""
    folder.mkdir(parents=True)
    (folder / FUNCTION).write_text(function)
    write_arrays(folder / ARGUMENTS, arguments)
    (folder / SETTINGS).write_text(json.dumps(settings))


def write_arrays(path: Path, tensors: Sequence[RawTensor]) -> None:
    """Tensors in order; npz has no bf16, so that each name ends in its dtype."""
    np.savez(path, **{f"{index:03}-{tensor.dtype}": _plain(tensor) for index, tensor in enumerate(tensors)})


def _plain(tensor: RawTensor) -> Any:
    array = np.asarray(tensor.array)
    return array.view(np.uint16) if tensor.dtype == "bf16" else array


def read_arrays(path: Path) -> list[RawTensor]:
    """What `write_arrays` wrote."""
    with np.load(path) as archive:
        return [RawTensor(name.partition("-")[2], archive[name]) for name in sorted(archive.files)]
