"""`whet bench`: how long a bundle takes here, in all and kernel by kernel, and how much memory."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from whet.cli.inputs import Files, Sizes, Threads, read_inputs
from whet.cli.keys import Bundle, Key, Trust, check_for_board
from whet.cli.output import Json, add_row, console, plain_table, print_json
from whet.cli.run import Board
from whet.errors import InputError
from whet.progress import progress_bar
from whet.remote import Device
from whet.runtime import load
from whet.runtime.manifest import KernelCall
from whet.runtime.profiling import KernelTimes, time_kernels


def bench(
    bundle: Bundle,
    files: Files = None,
    size: Sizes = None,
    seconds: Annotated[float, typer.Option(help="How long to measure; half of it kernel by kernel.")] = 5.0,
    top: Annotated[int, typer.Option(help="Kernels in the table; 0: all.")] = 20,
    threads: Threads = None,
    device: Board = None,
    trust: Trust = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Measure latency, peak memory, and the time of every kernel of a bundle; on a board, the latency."""
    if seconds <= 0:
        raise InputError(f"--seconds {seconds:g}: give a positive number")
    if device is not None:
        check_for_board(bundle, trust, key)
        _bench_there(bundle, Device(device), files or (), size or (), seconds, threads, as_json)
        return
    start = time.perf_counter()
    module = load(bundle, threads, trusted=trust or None, key=key)
    loading = time.perf_counter() - start
    args, kwargs = read_inputs(module.manifest, files or (), size or ())
    with progress_bar(False if as_json else None) as show:
        times = time_kernels(bundle, args, kwargs, threads, seconds, show, trusted=trust or None, key=key)
    kernels = _by_kernel(module.manifest.kernels, times)
    found = {
        "bundle": str(bundle),
        "target": module.target.name,
        "threads": module.threads,
        "load_seconds": loading,
        "milliseconds": _spread([1e3 * item for item in times.calls]),
        "calls": len(times.calls),
        "peak_memory_bytes": _peak_memory(),
        "kernels": kernels,
    }
    if as_json:
        print_json(found)
        return
    _print(found, top)


def _bench_there(
    bundle: Path,
    device: Device,
    files: Sequence[str],
    size: Sequence[str],
    seconds: float,
    threads: int | None,
    as_json: bool,
) -> None:
    module = device.load(bundle, threads)
    args, kwargs = read_inputs(module.manifest, files, size)
    once = module.benchmark(*args, repeat=3, **kwargs)
    median = module.benchmark(*args, repeat=max(3, round(1e3 * seconds / once)), **kwargs)
    if as_json:
        print_json({"bundle": str(bundle), "device": asdict(device.info), "milliseconds": {"median": median}})
        return
    console().print(f"{bundle.name} on {device}: median {median:.3f} ms", markup=False, highlight=False)


def _spread(values: list[float]) -> dict[str, float]:
    tenths = statistics.quantiles(values, n=10)
    return {
        "median": statistics.median(values),
        "p10": tenths[0],
        "p90": tenths[-1],
        "min": min(values),
        "max": max(values),
    }


def _peak_memory() -> int:
    """Bytes that this process held at most: Python and all."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _by_kernel(calls: tuple[KernelCall, ...], times: KernelTimes) -> list[dict[str, Any]]:
    """Kernels, those that take longest first; bundles of before do not say what theirs compute."""
    total = sum(times.seconds) or 1.0
    known = [call.name for call in calls] == list(times.names)
    rows: dict[str, dict[str, Any]] = {}
    for index, (name, taken) in enumerate(zip(times.names, times.seconds, strict=True)):
        call = calls[index] if known else KernelCall(name, ())
        row = rows.setdefault(
            name,
            {
                "kernel": name,
                "operations": list(call.operations),
                "module": call.module,
                "precision": call.precision,
                "schedule": call.schedule,
                "calls": 0,
                "milliseconds": 0.0,
            },
        )
        row["calls"] += 1
        row["milliseconds"] += 1e3 * taken
    for row in rows.values():
        row["share"] = row["milliseconds"] / 1e3 / total
    return sorted(rows.values(), key=lambda row: -row["milliseconds"])


def _print(found: dict[str, Any], top: int) -> None:
    here, spread = console(), found["milliseconds"]
    here.print(
        f"{os.path.basename(found['bundle'])} for {found['target']}, {found['threads']} thread(s): median "
        f"{spread['median']:.3f} ms (10 % {spread['p10']:.3f}, 90 % {spread['p90']:.3f}; {found['calls']} calls), "
        f"loaded in {found['load_seconds']:.3f} s, peak memory {found['peak_memory_bytes'] / 1e6:.0f} MB",
        markup=False,
        highlight=False,
    )
    kernels = found["kernels"]
    table = plain_table("kernel", "module", "precision", "schedule", "calls", "ms", "share")
    for row in kernels[: top or None]:
        add_row(
            table,
            " + ".join(row["operations"]) or row["kernel"],
            row["module"],
            row["precision"],
            row["schedule"],
            row["calls"],
            f"{row['milliseconds']:.4f}",
            f"{row['share']:.1%}",
        )
    here.print(table)
    hidden = kernels[top:] if top else []
    if hidden:
        here.print(f"and {len(hidden)} more: {sum(row['share'] for row in hidden):.1%}; --top 0 shows all")
