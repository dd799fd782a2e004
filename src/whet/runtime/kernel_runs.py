"""Running and timing one kernel by itself, outside of any model."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from whet.runtime.cpu import host_features
from whet.runtime.dtypes import DTYPES
from whet.runtime.library import load_runtime, tvm_ffi
from whet.runtime.safetensors import RawTensor
from whet.runtime.tensors import Native, TensorDevice

ENTRY: Final = "main"
"""The kernel's name in its library."""

_RUN_SECONDS: Final = 0.08
_BATCHES: Final = 9
_ROTATED_BYTES: Final = 64 << 20
"""Weights are copied until they fill so much, and used in turn: in a model they come from behind the caches too."""
_MOST_COPIES: Final = 16

Shape = tuple[int, ...]
Kernel = Callable[..., Any]


def open_kernel(library: Path) -> Kernel:
    """The kernel in a shared library. Raises TargetError without a runtime, RuntimeError for what cannot be loaded."""
    load_runtime()
    kernel: Kernel = tvm_ffi().load_module(str(library.resolve()))[ENTRY]
    return kernel


def run_kernel(
    kernel: Kernel, arguments: Sequence[RawTensor], outputs: Sequence[tuple[str, Shape]], weights: Sequence[int]
) -> tuple[list[RawTensor], float]:
    """What a kernel computes, and the median of the seconds that a call takes.

    Args:
        kernel: takes the arguments and then the outputs, which it fills.
        arguments: in order.
        outputs: (dtype, shape) of each.
        weights: numbers of the arguments that are weights, which are read from memory and not from a cache.
    """
    # Asking is what makes the registers of a matrix unit usable.
    host_features()
    device = TensorDevice("cpu")
    given = [device.put_raw(argument) for argument in arguments]
    empty = [RawTensor(dtype, np.zeros(shape, DTYPES[dtype].storage)) for dtype, shape in outputs]
    native = [device.put_raw(tensor) for tensor in empty]
    kernel(*given, *native)
    results = [
        RawTensor(dtype, np.array(device.get_raw(tensor, DTYPES[dtype])))
        for tensor, (dtype, _) in zip(native, outputs, strict=True)
    ]
    return results, _time(kernel, _rotated(given, weights, device), native)


def _rotated(given: Sequence[Native], weights: Sequence[int], device: TensorDevice) -> list[list[Native]]:
    """Argument lists with weights of their own."""
    size = sum(math.prod(given[index].shape) for index in weights) or 1
    copies = min(_MOST_COPIES, 1 + _ROTATED_BYTES // (4 * size)) if weights else 1
    return [
        [device.copy(item) if index in weights and turn else item for index, item in enumerate(given)]
        for turn in range(copies)
    ]


def _time(kernel: Kernel, lists: Sequence[Sequence[Native]], outputs: Sequence[Native]) -> float:
    """Median over batches of the mean time of a call."""
    calls = [[*given, *outputs] for given in lists]

    def batch(turns: int) -> float:
        start = time.perf_counter()
        for turn in range(turns):
            kernel(*calls[turn % len(calls)])
        return (time.perf_counter() - start) / turns

    once = min(batch(len(calls)), batch(len(calls)))
    turns = max(1, int(_RUN_SECONDS / _BATCHES / max(once, 1e-7)))
    turns = -(-turns // len(calls)) * len(calls) if turns > len(calls) else turns
    return statistics.median(batch(turns) for _ in range(_BATCHES))
