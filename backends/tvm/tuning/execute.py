"""Building one kernel, checking what it computes, and timing it: on this machine or on a board behind RPC."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import tvm

from whet.backends.tvm.build_options import PASS_OPTIONS
from whet.backends.tvm.link import linked_by
from whet.backends.tvm.tuning.jobs import EXPECTED, FUNCTION, OUTPUT, SETTINGS, read_arrays, write_arrays
from whet.runtime.dtypes import DTYPES
from whet.runtime.safetensors import RawTensor
from whet.runtime.tensors import TensorDevice

_RUN_SECONDS: Final = 0.08
_BATCHES: Final = 9
_ROTATED_BYTES: Final = 64 << 20
"""Weights are copied until they fill so much, and used in turn: in a model they come from behind the caches too."""
_MOST_COPIES: Final = 16

FLOAT_TOLERANCE: Final = 2e-4
"""Largest difference from the default kernel, relative to the largest element: sums in another order (numerics: R3)."""


class Wrong(Exception):
    """A kernel that does not compute what the default one computes."""


def execute(job: Path) -> dict[str, Any]:
    """{"seconds": of a call, "build_seconds": ...}; raises whatever building and running raise, and `Wrong`."""
    settings = json.loads((job / SETTINGS).read_text())
    start = time.perf_counter()
    module = tvm.ir.load_json((job / FUNCTION).read_text())
    target = tvm.target.Target(settings["target"])
    with target, tvm.transform.PassContext(opt_level=3, config=PASS_OPTIONS):
        built = tvm.tirx.build(module, target)
    built_after = time.perf_counter() - start
    arguments = read_arrays(job / "arguments.npz")
    outputs = [np.zeros(shape, DTYPES[dtype].storage) for dtype, shape in settings["outputs"]]
    place = _local if settings["remote"] is None else _remote
    results, seconds = place(built, arguments, outputs, settings)
    _check(job, results, settings)
    return {"seconds": seconds, "build_seconds": built_after}


def _local(
    built: Any, arguments: Sequence[RawTensor], outputs: Sequence[Any], settings: dict[str, Any]
) -> tuple[list[Any], float]:
    device = TensorDevice("cpu")
    native = [device.put_raw(RawTensor(dtype, array)) for (dtype, _), array in _typed(outputs, settings)]
    given = [device.put_raw(argument) for argument in arguments]
    function = built["main"]
    function(*given, *native)
    results = [
        device.get(tensor, DTYPES[dtype]) for tensor, (dtype, _) in zip(native, settings["outputs"], strict=True)
    ]
    results = [np.array(array) for array in results]
    return results, _time(function, _rotated(given, settings, device), native)


def _typed(outputs: Sequence[Any], settings: dict[str, Any]) -> list[tuple[tuple[str, Any], Any]]:
    return list(zip(map(tuple, settings["outputs"]), outputs, strict=True))


def _rotated(given: Sequence[Any], settings: dict[str, Any], device: TensorDevice) -> list[list[Any]]:
    """Argument lists with weights of their own."""
    weights = settings["weights"]
    size = sum(math.prod(given[index].shape) for index in weights) or 1
    copies = min(_MOST_COPIES, 1 + _ROTATED_BYTES // (4 * size)) if weights else 1
    return [
        [device.copy(item) if index in weights and turn else item for index, item in enumerate(given)]
        for turn in range(copies)
    ]


def _time(function: Callable[..., Any], lists: Sequence[Sequence[Any]], outputs: Sequence[Any]) -> float:
    """Median over batches of the mean time of a call."""
    calls = [[*given, *outputs] for given in lists]

    def batch(turns: int) -> float:
        start = time.perf_counter()
        for turn in range(turns):
            function(*calls[turn % len(calls)])
        return (time.perf_counter() - start) / turns

    once = min(batch(len(calls)), batch(len(calls)))
    turns = max(1, int(_RUN_SECONDS / _BATCHES / max(once, 1e-7)))
    turns = -(-turns // len(calls)) * len(calls) if turns > len(calls) else turns
    return statistics.median(batch(turns) for _ in range(_BATCHES))


def _remote(
    built: Any, arguments: Sequence[RawTensor], outputs: Sequence[Any], settings: dict[str, Any]
) -> tuple[list[Any], float]:
    """Upload, run and time on a board that a tracker or a server lends."""
    from whet.backends.tvm.tuning.remote import session_for

    remote = session_for(settings["remote"])
    library = Path(settings["library"])
    built.export_library(str(library), fcompile=linked_by(settings["link"], settings["target"]["mtriple"]))
    remote.upload(str(library))
    device = remote.cpu(0)
    function = remote.load_module(library.name)
    given = [tvm.runtime.tensor(_bits(argument), device) for argument in arguments]
    native = [tvm.runtime.tensor(array, device) for array in outputs]
    function["main"](*given, *native)
    results = [tensor.numpy() for tensor in native]
    timer = function.time_evaluator("main", device, number=1, repeat=_BATCHES, min_repeat_ms=20)
    return results, float(timer(*given, *native).median)


def _bits(argument: RawTensor) -> Any:
    if argument.dtype == "bf16":
        raise ValueError("bf16 kernels cannot be tuned over RPC: it has no such tensors")
    return argument.array


def _check(job: Path, results: Sequence[Any], settings: dict[str, Any]) -> None:
    """Keep the default kernel's results; compare those of all others with them. Raises Wrong."""
    if settings["reference"]:
        raw = [RawTensor(dtype, array) for (dtype, _), array in zip(settings["outputs"], results, strict=True)]
        write_arrays(job.parent / EXPECTED, raw)
        return
    expected = read_arrays(job.parent / EXPECTED)
    for name, actual, wanted in zip(OUTPUT, results, expected, strict=False):
        _compare(name, np.asarray(actual), wanted)


def _compare(name: str, actual: Any, wanted: RawTensor) -> None:
    if wanted.dtype == "bf16":
        actual, reference = _wide(actual), _wide(wanted.array)
    else:
        reference = wanted.array
    if reference.dtype.kind != "f":
        if not np.array_equal(actual, reference):
            raise Wrong(f"{name} has {int((actual != reference).sum())} other integers than the default kernel's")
        return
    largest = float(np.abs(reference[np.isfinite(reference)]).max(initial=0.0))
    bound = FLOAT_TOLERANCE if wanted.dtype in ("f32", "f64") else 2e-2
    close = np.isclose(actual, reference, rtol=0.0, atol=bound * largest, equal_nan=True)
    if not bool(close.all()):
        raise Wrong(f"{name} differs from the default kernel's by {float(np.nanmax(np.abs(actual - reference))):.2g}")


def _wide(array: Any) -> Any:
    """bf16, as bits or as ml_dtypes has it, in f32."""
    bits = array.view(np.uint16).astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32)
