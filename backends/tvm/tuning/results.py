"""What a candidate computed, beside what the default kernel did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from whet.backends.tvm.tuning.jobs import EXPECTED, OUTPUT, read_arrays, write_arrays
from whet.runtime.safetensors import RawTensor

FLOAT_TOLERANCE: Final = 2e-4
"""Largest difference from the default kernel, relative to the largest element: sums in another order (numerics: R3)."""
_HALF_TOLERANCE: Final = 2e-2


class Wrong(Exception):
    """A kernel that does not compute what the default one computes."""


def check_results(task: Path, results: Sequence[RawTensor], reference: bool) -> None:
    """Keep the default kernel's results in the task's folder; compare those of all others with them. Raises Wrong."""
    if reference:
        write_arrays(task / EXPECTED, results)
        return
    for name, actual, wanted in zip(OUTPUT, results, read_arrays(task / EXPECTED), strict=False):
        _compare(name, actual, wanted)


def _compare(name: str, result: RawTensor, wanted: RawTensor) -> None:
    actual, reference = (_wide(item) for item in (result, wanted))
    if reference.dtype.kind != "f":
        if not np.array_equal(actual, reference):
            raise Wrong(f"{name} has {int((actual != reference).sum())} other integers than the default kernel's")
        return
    largest = float(np.abs(reference[np.isfinite(reference)]).max(initial=0.0))
    bound = FLOAT_TOLERANCE if wanted.dtype in ("f32", "f64") else _HALF_TOLERANCE
    close = np.isclose(actual, reference, rtol=0.0, atol=bound * largest, equal_nan=True)
    if not bool(close.all()):
        raise Wrong(f"{name} differs from the default kernel's by {float(np.nanmax(np.abs(actual - reference))):.2g}")


def _wide(tensor: RawTensor) -> Any:
    """bf16 bits as f32."""
    if tensor.dtype != "bf16":
        return tensor.array
    return (tensor.array.astype(np.uint32) << np.uint32(16)).view(np.float32)
