"""Latency of compiled models beside their peers, on this machine, in one run.

Every engine is prepared once, then measured in several rounds, each in a process of its own, in turn, pinned to the
same cores; the median of the rounds counts. Outputs of all engines are compared with eager's.

    python -m benchmarks.latency --models resnet18,trained/mobilenet_v2 --engines eager,whet
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

DEFAULT_MODELS = ("resnet18", "resnet50", "trained/mobilenet_v2", "trained/minilm")
DEFAULT_ENGINES = ("eager", "whet")
_CHILD_LIMIT_SECONDS = 900


@dataclass
class Row:
    """One engine on one model."""

    model: str
    engine: str
    precision: str
    milliseconds: float = float("nan")
    rounds: list[float] = field(default_factory=list)
    ratio_to_eager: float = float("nan")
    """Latency divided by eager's: below 1 is faster."""
    relative_error: float = float("nan")
    peak_megabytes: float = float("nan")
    size_megabytes: float = float("nan")
    prepare_seconds: float = float("nan")
    failure: str = ""


def child(action: str, engine: str, model: str, folder: Path, cores: list[int]) -> dict[str, Any]:
    """Run one engine's process pinned to `cores`. Raises RuntimeError with the end of its error output."""
    threads = str(len(cores))
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TVM_NUM_THREADS": threads,
        "TVM_BIND_THREADS": "0",
    }
    command = [
        sys.executable,
        "-m",
        "benchmarks.engines",
        action,
        engine,
        model,
        str(folder),
        "--threads",
        threads,
    ]
    finished = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        timeout=_CHILD_LIMIT_SECONDS,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if finished.returncode:
        raise RuntimeError(finished.stderr.strip().splitlines()[-1] if finished.stderr.strip() else "no message")
    result: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return result


def measure_model(model: str, engines: list[str], rounds: int, cores: list[int], show: Any) -> list[Row]:
    """Prepare every engine, then measure them in turn."""
    from benchmarks.engines import ENGINES

    rows = [Row(model, engine, ENGINES[engine].precision) for engine in engines]
    with tempfile.TemporaryDirectory(prefix="whet-latency-") as top:
        folders = {engine: Path(top) / engine for engine in engines}
        for row in rows:
            folders[row.engine].mkdir()
            _attempt(row, lambda row=row: _prepare(row, folders[row.engine], cores))
            show()
        for _ in range(rounds):
            for row in rows:
                if not row.failure:
                    _attempt(row, lambda row=row: _measure(row, folders[row.engine], cores))
                show()
        _compare(rows, folders)
    return rows


def _attempt(row: Row, action: Any) -> None:
    try:
        action()
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        row.failure = str(error)


def _prepare(row: Row, folder: Path, cores: list[int]) -> None:
    row.prepare_seconds = child("prepare", row.engine, row.model, folder, cores)["prepare_seconds"]
    files = [item for item in folder.iterdir() if item.is_file()]
    if files:
        row.size_megabytes = sum(item.stat().st_size for item in files) / 1e6


def _measure(row: Row, folder: Path, cores: list[int]) -> None:
    result = child("measure", row.engine, row.model, folder, cores)
    row.rounds.append(result["milliseconds"])
    row.milliseconds = statistics.median(row.rounds)
    row.peak_megabytes = result["peak_megabytes"]


def _compare(rows: list[Row], folders: dict[str, Path]) -> None:
    eager = next((row for row in rows if row.engine == "eager" and not row.failure), None)
    if eager is None:
        return
    expected = np.load(folders["eager"] / "output.npy")
    for row in rows:
        if row.failure:
            continue
        actual = np.load(folders[row.engine] / "output.npy")
        row.relative_error = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
        row.ratio_to_eager = row.milliseconds / eager.milliseconds


def table(rows: list[Row]) -> Table:
    """The result as people read it."""
    result = Table()
    for heading in ("model", "engine", "in", "ms", "x eager", "error", "MB peak", "MB size", "s prep."):
        result.add_column(heading, no_wrap=True, overflow="fold")
    for row in rows:
        if row.failure:
            result.add_row(row.model, row.engine, row.precision, f"[red]failed: {row.failure[:60]}")
            continue
        result.add_row(
            row.model,
            row.engine,
            row.precision,
            f"{row.milliseconds:.2f}",
            f"{row.ratio_to_eager:.2f}",
            f"{row.relative_error:.1e}",
            f"{row.peak_megabytes:.0f}",
            f"{row.size_megabytes:.1f}",
            f"{row.prepare_seconds:.1f}",
        )
    return result


def environment() -> dict[str, str]:
    """Date, processor and versions, for the saved results."""
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = {name: version(name) for name in ("torch", "apache-tvm", "numpy")}
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": names[0] if names else platform.processor(),
        "python": platform.python_version(),
        **packages,
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(DEFAULT_MODELS))
    parser.add_argument("--engines", default=",".join(DEFAULT_ENGINES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    models, engines = options.models.split(","), options.engines.split(",")
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    console, rows = Console(), list[Row]()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(models) * len(engines) * (options.rounds + 1))
        try:
            for model in models:
                progress.update(task, description=model)
                rows += measure_model(model, engines, options.rounds, cores, lambda: progress.advance(task))
        except KeyboardInterrupt:
            console.print("stopped; what was measured so far:")
    console.print(table(rows))
    if options.json:
        options.json.write_text(
            json.dumps({"environment": environment(), "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )
    return int(any(row.failure for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
