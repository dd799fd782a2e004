"""Latency of compiled models beside their peers, on this machine, in one run.

Every engine is prepared once, then measured in several rounds, each in a process of its own, in turn, pinned to the
same cores; the median of the rounds counts. Outputs of all engines are compared with eager's. The ratio is the best
peer's latency in the same precision over an engine's own: above 1 is faster than every peer.

    python -m benchmarks.latency --models resnet18,trained/mobilenet_v2 --engines eager,openvino,whet
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.comparison import BASELINE, Row, compare, remarks, summarize, table
from benchmarks.engines.catalogue import ENGINES
from benchmarks.engines.measuring import OUTPUT_FILE, SECONDS
from benchmarks.environment import environment, wide_console
from benchmarks.models.zoo_cases import all_cases
from benchmarks.processes import cores_for, run_child

__all__ = ["DEFAULT_MODELS", "Settings", "environment", "main", "measure_model"]

DEFAULT_ENGINES = [name for name in ENGINES if not name.endswith("-tuned")]
"""Tuning takes up to twenty minutes a model: those engines run where they are named."""
DEFAULT_MODELS = ("resnet18", "resnet50", "trained/mobilenet_v2", "trained/minilm", "trained/crepe_full")


@dataclass(frozen=True)
class Settings:
    """How everything is measured.

    Attributes:
        rounds: turns that each engine has.
        seconds: of calls in each turn.
        cores: to which every process is pinned; as many threads.
    """

    rounds: int
    seconds: float
    cores: Sequence[int]


def measure_model(model: str, engines: Sequence[str], settings: Settings, show: Callable[[str], None]) -> list[Row]:
    """Prepare every engine that is installed, then measure them in turn.

    `show` is told of every step before it begins.
    """
    rows = [_new_row(model, engine) for engine in engines]
    with tempfile.TemporaryDirectory(prefix="whet-latency-") as top:
        folders = {engine: Path(top) / engine for engine in engines}
        for row in rows:
            show(f"{model}: preparing {row.engine}")
            folders[row.engine].mkdir()
            _attempt(row, lambda row=row: _prepare(row, folders[row.engine], settings))
        for number in range(settings.rounds):
            for row in rows:
                show(f"{model}: {row.engine}, round {number + 1}")
                _attempt(row, lambda row=row: _measure(row, folders[row.engine], settings))
        _find_errors(rows, folders)
    compare(rows)
    return rows


def _new_row(model: str, name: str) -> Row:
    engine = ENGINES[name]
    return Row(model, name, engine.precision, engine.own, engine.note, missing=engine.missing())


def _attempt(row: Row, action: Callable[[], None]) -> None:
    """Do it unless the row has come to its end already; a failure is the row's result."""
    if row.missing or row.failure:
        return
    try:
        action()
    except RuntimeError as error:
        row.failure = str(error)


def _prepare(row: Row, folder: Path, settings: Settings) -> None:
    result = _child("prepare", row, folder, settings)
    row.prepare_seconds = result["prepare_seconds"]
    if result["size_megabytes"] is not None:
        row.size_megabytes = result["size_megabytes"]


def _measure(row: Row, folder: Path, settings: Settings) -> None:
    result = _child("measure", row, folder, settings)
    row.rounds.append(result["milliseconds"])
    row.milliseconds = statistics.median(row.rounds)
    row.peak_megabytes = result["peak_megabytes"]


def _child(action: str, row: Row, folder: Path, settings: Settings) -> Any:
    options = ["--threads", str(len(settings.cores)), "--seconds", str(settings.seconds)]
    return run_child("benchmarks.engines", [action, row.engine, row.model, str(folder), *options], settings.cores)


def _find_errors(rows: Sequence[Row], folders: dict[str, Path]) -> None:
    if not any(row.engine == BASELINE and row.measured for row in rows):
        return
    expected = np.load(folders[BASELINE] / OUTPUT_FILE)
    for row in (row for row in rows if row.measured):
        actual = np.load(folders[row.engine] / OUTPUT_FILE)
        row.relative_error = relative_error(actual, expected)


def relative_error(actual: Any, expected: Any) -> float:
    """||actual - expected|| / ||expected||; infinite for another shape."""
    if actual.shape != expected.shape:
        return float("inf")
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _names(text: str, known: Sequence[str] | None = None) -> list[str]:
    """Names at commas. Raises ArgumentTypeError for one that is not known."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if known is not None and name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known are {', '.join(known or ())}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=_names, default=list(DEFAULT_MODELS), help="names of the zoo, at commas")
    parser.add_argument(
        "--engines", type=lambda text: _names(text, list(ENGINES)), default=DEFAULT_ENGINES, help=", ".join(ENGINES)
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each engine")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of calls in each turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--plot", type=Path, help="also draw them there (.png, .svg)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 where an engine that is installed failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = [model for model in options.models if model not in all_cases()]
    if unknown:
        parser.error(f"no such models: {', '.join(unknown)}")
    settings = Settings(options.rounds, options.seconds, cores_for(options.threads))
    console, rows = wide_console(), list[Row]()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        steps = len(options.models) * len(options.engines) * (settings.rounds + 1)
        task = progress.add_task("", total=steps)

        def show(text: str) -> None:
            begun = bool(progress.tasks[task].description)
            progress.update(task, description=text, advance=int(begun))

        try:
            for model in options.models:
                rows += measure_model(model, options.engines, settings, show)
                _save(options, rows)
        except KeyboardInterrupt:
            console.print("stopped; the models measured so far:")
    console.print(table(rows))
    for line in remarks(rows):
        console.print(line, markup=False)
    return int(any(row.failure for row in rows))


def _save(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Write what is known so far: a run over all models takes most of an hour."""
    about = environment() | {"threads": str(options.threads)}
    if options.json:
        options.json.write_text(json.dumps(record(about, rows), indent=1) + "\n")
    if options.plot:
        from benchmarks.plots import plot_latency

        plot_latency(rows, about, options.plot)


def record(about: dict[str, str], rows: Sequence[Row]) -> dict[str, Any]:
    """What is saved: where it was measured, the rows, the geometric means; null for what is not known."""
    means = [asdict(summary) | {"geometric_mean": summary.mean} for summary in summarize(rows)]
    return {
        "environment": about,
        "rows": [_known(asdict(row)) for row in rows],
        "summaries": [_known(m) for m in means],
    }


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    """Numbers that JSON has no word for as None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
