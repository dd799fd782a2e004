"""Where the time of a compiled model goes: each kernel beside what this machine reaches at most.

A kernel's least time is the larger of its operations over the peak of its precision and its bytes over the bandwidth
of a copy of as many (Williams et al., CACM 2009); the share of the peak is that over the time that it takes. Kernels
are timed inside of the model's run, in a process of their own; peaks are measured on the spot (`benchmarks.peaks`).

    python -m benchmarks.roofline --models resnet18 --engines whet,whet-int8
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.engines.__main__ import find_case
from benchmarks.engines.base import INPUTS_FILE, Inputs
from benchmarks.engines.catalogue import ENGINES
from benchmarks.engines.whet_engines import BUNDLE, Whet
from benchmarks.environment import environment, wide_console
from benchmarks.kernel_work import KernelWork, work_of
from benchmarks.latency import DEFAULT_ENGINES, DEFAULT_MODELS
from benchmarks.peaks import Peaks
from benchmarks.peaks import table as peaks_table
from benchmarks.processes import cores_for, run_child
from whet.runtime.profiling import KernelTimes

OWN_ENGINES: Mapping[str, type[Whet]] = {name: one for name, one in ENGINES.items() if issubclass(one, Whet)}


@dataclass(frozen=True)
class KernelRow:
    """One kernel, all of its calls together.

    Attributes:
        kernel: its name in the library.
        operations: names of what it computes.
        module: path in the model of its first call.
        schedule: the rule that scheduled it.
        precision: of its multiply-adds.
        calls: in one call of the model.
        milliseconds: of all of them.
        share: of the time of all kernels, 0..1.
        gigaflops: operations a second, in 10^9.
        gigabytes: bytes a second, in 10^9: inputs, weights and results, each once.
        memory_bound: whether moving these bytes takes longer than the operations, both at the machine's peak.
        of_peak: least time over time, 0..1 (above 1 where its data lies in a nearer cache than the copy's).
    """

    kernel: str
    operations: tuple[str, ...]
    module: str
    schedule: str
    precision: str
    calls: int
    milliseconds: float
    share: float
    gigaflops: float
    gigabytes: float
    memory_bound: bool
    of_peak: float


@dataclass(frozen=True)
class Roofline:
    """A model in one of Whet's engines.

    Attributes:
        model: the case's name.
        engine: the engine's name.
        model_milliseconds: of a whole call.
        kernel_milliseconds: of all kernels in it.
        of_peak: the kernels' least times over their times, all together.
        rows: the kernels, those that take longest first.
    """

    model: str
    engine: str
    model_milliseconds: float
    kernel_milliseconds: float
    of_peak: float
    rows: tuple[KernelRow, ...]


def roofline(
    names: tuple[str, str],
    works: Sequence[KernelWork],
    kernels: Mapping[str, tuple[tuple[str, ...], str]],
    times: KernelTimes,
    peaks: Peaks,
) -> Roofline:
    """Set times beside work and peaks.

    Args:
        names: of model and engine.
        works: of the kernels, in the order of their calls.
        kernels: name in the library -> operations and schedule.
        times: of the kernels, in the order of their calls.
        peaks: of the machine.

    Raises RuntimeError where the kernels that were called are not those that do this work.
    """
    if [kernels[name][0] for name in times.names] != [work.operations for work in works]:
        raise RuntimeError(f"{names[0]} called {len(times.names)} kernels; {len(works)} were expected, in their order")
    total = sum(times.seconds)
    calls: dict[str, list[tuple[KernelWork, float]]] = {}
    for name, work, seconds in zip(times.names, works, times.seconds, strict=True):
        calls.setdefault(name, []).append((work, seconds))
    rows = [_row(name, kernels[name][1], done, total, peaks) for name, done in calls.items()]
    least = sum(row.of_peak * row.milliseconds for row in rows) / 1e3
    return Roofline(
        *names,
        times.model_seconds * 1e3,
        total * 1e3,
        least / total if total else float("nan"),
        tuple(sorted(rows, key=lambda row: -row.milliseconds)),
    )


def _row(name: str, schedule: str, calls: Sequence[tuple[KernelWork, float]], total: float, peaks: Peaks) -> KernelRow:
    first = calls[0][0]
    # A kernel that is too short for the clock has taken one tick.
    seconds = max(sum(taken for _, taken in calls), 1e-9)
    least = [peaks.seconds(work.precision, work.flops, work.moved) for work, _ in calls]
    return KernelRow(
        name,
        first.operations,
        first.module,
        schedule,
        first.precision,
        len(calls),
        seconds * 1e3,
        seconds / total,
        sum(work.flops for work, _ in calls) / seconds / 1e9,
        sum(work.moved for work, _ in calls) / seconds / 1e9,
        least[0][1],
        sum(taken for taken, _ in least) / seconds,
    )


def measure(model: str, engine: str, peaks: Peaks, cores: Sequence[int], seconds: float) -> Roofline:
    """Compile a model here and time it in a process of its own."""
    case = find_case(model)
    compiled = OWN_ENGINES[engine]().compile(case)
    with tempfile.TemporaryDirectory(prefix="whet-roofline-") as top:
        compiled.save(Path(top) / BUNDLE)
        Inputs.of(case).save(Path(top) / INPUTS_FILE)
        options = ["--threads", str(len(cores)), "--seconds", str(seconds)]
        answer = run_child("benchmarks.kernel_times", [top, *options], cores)
    times = KernelTimes(tuple(answer["names"]), tuple(answer["seconds"]), answer["model_seconds"])
    kernels = {item.name: (item.operations, item.schedule) for item in compiled.report().kernels}
    return roofline((model, engine), work_of(compiled), kernels, times, peaks)


def table(result: Roofline, top: int) -> Table:
    """The kernels that take longest, and the others in one line."""
    title = (
        f"{result.model}, {result.engine}: {result.kernel_milliseconds:.2f} ms in kernels of "
        f"{result.model_milliseconds:.2f} ms, {result.of_peak:.0%} of what the machine could do"
    )
    shown = Table(title=title, title_justify="left")
    for heading in ("kernel", "first in", "calls", "ms", "share", "reaches", "of peak", "bound by", "schedule"):
        shown.add_column(heading, justify="right" if heading in _NUMBERS else "left", no_wrap=heading in _NUMBERS)
    for row in result.rows[:top]:
        reaches = f"{row.gigabytes:.1f} GB/s" if row.memory_bound else f"{row.gigaflops:.0f} GOP/s"
        shown.add_row(
            row.kernel,
            row.module,
            str(row.calls),
            f"{row.milliseconds:.3f}",
            f"{row.share:.1%}",
            reaches,
            f"{row.of_peak:.0%}",
            "memory" if row.memory_bound else row.precision,
            row.schedule,
        )
    others = result.rows[top:]
    if others:
        milliseconds, share = (sum(values) for values in zip(*((r.milliseconds, r.share) for r in others), strict=True))
        calls = sum(row.calls for row in others)
        shown.add_row(f"{len(others)} others", "", str(calls), f"{milliseconds:.3f}", f"{share:.1%}")
    return shown


_NUMBERS = frozenset({"calls", "ms", "share", "reaches", "of peak"})


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
        return names

    return parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 where a model could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(DEFAULT_MODELS))
    parser.add_argument(
        "--engines",
        type=_names(list(OWN_ENGINES)),
        default=[name for name in OWN_ENGINES if name in DEFAULT_ENGINES],
        help=", ".join(OWN_ENGINES),
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="of calls of each model")
    parser.add_argument("--top", type=int, default=25, help="kernels shown of each model; all are saved")
    parser.add_argument("--json", type=Path, help="also write everything there")
    options = parser.parse_args(arguments)
    cores, console = cores_for(options.threads), wide_console()
    peaks = Peaks.of(run_child("benchmarks.peaks", ["--child", "--threads", str(options.threads)], cores))
    console.print(peaks_table(peaks))
    results: list[Roofline] = []
    failures: dict[str, str] = {}
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as progress:
        pairs = [(model, engine) for model in options.models for engine in options.engines]
        task = progress.add_task("", total=len(pairs))
        for model, engine in pairs:
            progress.update(task, description=f"{model}, {engine}")
            try:
                results.append(measure(model, engine, peaks, cores, options.seconds))
                progress.console.print(table(results[-1], options.top))
            except Exception as error:  # what one model raises is its result; the others go on
                failures[f"{model}, {engine}"] = _reason(error)
                progress.console.print(f"failed: {model}, {engine}: {_reason(error)}", markup=False)
            progress.advance(task)
    if options.json:
        about = environment() | {"threads": str(options.threads)}
        options.json.write_text(json.dumps(record(about, peaks, results, failures), indent=1) + "\n")
    return int(bool(failures))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def record(
    about: Mapping[str, str], peaks: Peaks, results: Sequence[Roofline], failures: Mapping[str, str]
) -> dict[str, Any]:
    """What is saved."""
    return {
        "environment": dict(about),
        "peaks": asdict(peaks),
        "models": [asdict(result) for result in results],
        "failures": dict(failures),
    }


if __name__ == "__main__":
    raise SystemExit(main())
