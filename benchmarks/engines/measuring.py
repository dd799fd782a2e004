"""Prepare and measure one engine in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.base import INPUTS_FILE, Array, Engine, Inputs, Job

SECONDS = 3.0
OUTPUT_FILE = "output.npy"

_WARM_UP = 5
_MOST_RUNS = 1000


def prepare(engine: Engine, job: Job) -> dict[str, Any]:
    """Save the inputs, then prepare; how long the latter took (s) and what it left (MB, None for nothing)."""
    Inputs.of(job.case).save(job.folder / INPUTS_FILE)
    start = time.perf_counter()
    engine.prepare(job)
    seconds = time.perf_counter() - start
    sizes = [item.stat().st_size for item in job.artifacts()]
    return {"prepare_seconds": seconds, "size_megabytes": sum(sizes) / 1e6 if sizes else None}


def measure(engine: Engine, job: Job, seconds: float = SECONDS) -> dict[str, Any]:
    """Median latency (ms) of about `seconds` of calls, peak memory (MB), time to load and run once (s).

    The first output is written to the job's folder.
    """
    start = time.perf_counter()
    run = engine.load(job)
    output = first_output(run())
    loaded = time.perf_counter() - start
    for _ in range(_WARM_UP):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _MOST_RUNS and (not times or time.perf_counter() < end):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    np.save(job.folder / OUTPUT_FILE, output)
    return {
        "milliseconds": statistics.median(times) * 1e3,
        "runs": len(times),
        "load_seconds": loaded,
        "peak_megabytes": peak_megabytes(),
    }


def first_output(outputs: Any) -> Array:
    """The first tensor of any structure of outputs, as float32, in memory of its own."""
    leaf = outputs
    while not hasattr(leaf, "__array__"):
        leaf = next(iter(leaf.values())) if isinstance(leaf, Mapping) else next(iter(leaf))
    # numpy has no bfloat16.
    return np.array(leaf.detach().float().numpy() if hasattr(leaf, "detach") else leaf, dtype=np.float32)


def peak_megabytes() -> float:
    """Peak resident memory of this process; `getrusage` would give the parent's maximum where that is larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak) / 1024
