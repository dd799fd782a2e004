"""Tries a long list of architectures: `python -m benchmarks.zoo`.

Each model is compiled without any pass and run in a process of its own with a time limit; what the compiled
module answers is compared with eager. A model passes when the compiled module ran, the relative error ||out -
ref|| / ||ref|| of every output is at most 1e-4 (the reference evaluated in float64 where the model allows it)
and, for a classifier, top-1 is the same. A model that could not even be built counts as a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.models.case import ModelCase
from benchmarks.models.check import STAGES, CheckResult
from benchmarks.models.zoo_cases import all_cases

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.2
REASON_WIDTH = 200


@dataclass(frozen=True)
class Options:
    """How every model is tried.

    Attributes:
        stage: `eager` (float32 against float64), `export` (torch.export) or `compile` (run, compare).
        target: what `whet.optimize` compiles for; it has to be a target that runs here.
        backend: `tvm` or `reference`.
        limit: seconds a model may take, from the start of its process.
        jobs: processes at a time.
    """

    stage: str
    target: str
    backend: str
    limit: float
    jobs: int


class Runner:
    """Runs checks in subprocesses, and can end those that are still running."""

    result_type: type[CheckResult] = CheckResult
    """What a check writes as JSON."""

    def __init__(self, options: Options, scratch: Path) -> None:
        self._options = options
        self._scratch = scratch
        self._stopping = False

    def run(self, case: ModelCase) -> CheckResult:
        """Check one model in a new process; a crash or a timeout becomes the reason of its failure."""
        result = self.result_type(case.name, case.source)
        if self._stopping:
            result.reason = "not started"
            return result
        answer = self._scratch / f"{case.name.replace('/', '-')}.json"
        log = answer.with_suffix(".log")
        start = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(case.name, answer),
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only this process, which then ends the others itself
            )
            ended = self._wait(process, start)
        if ended:
            result.reason = ended
            return result
        if not answer.exists():
            result.reason = f"the process ended with status {process.returncode}: {_last_line(log)}"
            return result
        return self.result_type(**json.loads(answer.read_text("utf-8")))

    def stop(self) -> None:
        """End what is running and start nothing more."""
        self._stopping = True

    def _command(self, name: str, answer: Path) -> list[str]:
        options = self._options
        flags = ["--stage", options.stage, "--target", options.target, "--backend", options.backend]
        return [sys.executable, "-m", "benchmarks.models.check", name, "--json", str(answer), *flags]

    def _wait(self, process: subprocess.Popen[bytes], start: float) -> str:
        """Wait for the end; the reason if it had to be ended."""
        while process.poll() is None:
            if self._stopping:
                _kill(process)
                return "interrupted"
            if time.monotonic() - start > self._options.limit:
                _kill(process)
                return f"took longer than the limit of {self._options.limit:g} s"
            time.sleep(POLL_SECONDS)
        return ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a check with the processes that it started; the session is its own."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        # It ended by itself between the last poll and now.
        return
    finally:
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def run_all(cases: Sequence[ModelCase], options: Options, console: Console) -> tuple[list[CheckResult], bool]:
    """Check all models with a progress bar, printing each as it ends.

    Returns:
        The results in the order of `cases`, and whether the run was interrupted; after an interruption only
        the models that had ended are in it.
    """
    results: dict[str, CheckResult] = {}
    interrupted = False
    with (
        tempfile.TemporaryDirectory(prefix="whet-zoo-") as scratch,
        ThreadPoolExecutor(options.jobs) as pool,
        _bar(console) as progress,
    ):
        runner = Runner(options, Path(scratch))
        task = progress.add_task("zoo", total=len(cases))
        pending: set[Future[CheckResult]] = {pool.submit(runner.run, case) for case in cases}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    results[result.name] = result
                    progress.console.print(_line(result), markup=False, highlight=False, soft_wrap=True)
                    progress.advance(task)
        except KeyboardInterrupt:
            interrupted = True
            runner.stop()
    return [results[case.name] for case in cases if case.name in results], interrupted


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _line(result: CheckResult) -> str:
    verdict = "pass" if result.passed else "FAIL"
    error = "" if result.error is None else f"error {result.error:.1e} vs {result.reference}"
    reason = " ".join(result.reason.split())[:REASON_WIDTH]
    return f"{verdict}  {result.name:42} {result.compile_seconds:7.1f} s  {error}  {reason}".rstrip()


def totals(results: Sequence[CheckResult]) -> list[tuple[str, int, int]]:
    """Per source and over all: (source, passed, tried)."""
    sources = list(dict.fromkeys(result.source for result in results))
    rows = []
    for source in sources:
        mine = [result for result in results if result.source == source]
        rows.append((source, sum(result.passed for result in mine), len(mine)))
    return [*rows, ("all", sum(result.passed for result in results), len(results))]


def print_totals(results: Sequence[CheckResult], console: Console) -> None:
    """One row a source, and a last one for everything."""
    table = Table("source", "passed", "tried", "share")
    for source, passed, tried in totals(results):
        table.add_row(source, str(passed), str(tried), f"{passed / tried:.1%}" if tried else "-")
    console.print(table)


def choose(
    names: str | None, sources: str | None, among: Callable[[], Mapping[str, ModelCase]] = all_cases
) -> list[ModelCase]:
    """The cases with these comma-separated names and of these sources; all of them where neither is given.

    Raises:
        SystemExit: a name or a source does not exist.
    """
    cases = among()
    wanted = names.split(",") if names else list(cases)
    unknown = [name for name in wanted if name not in cases]
    if unknown:
        raise SystemExit(f"No such models: {', '.join(unknown)}. `--list` prints all of them.")
    known = {case.source for case in cases.values()}
    allowed = set(sources.split(",")) if sources else known
    if allowed - known:
        raise SystemExit(f"No such sources: {', '.join(sorted(allowed - known))}. There are {sorted(known)}.")
    return [cases[name] for name in wanted if cases[name].source in allowed]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--models", help="comma-separated names; all by default")
    parser.add_argument("--sources", help="comma-separated: trained, torchvision, transformers, timm")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--stage", choices=STAGES, default="compile")
    parser.add_argument("--target", default="x86")
    parser.add_argument("--backend", choices=("tvm", "reference"), default="tvm")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one model")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--json", type=Path, help="also write the results here")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the zoo; the exit status is 0 when everything passed, 1 when not, 130 after Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    console = Console()
    cases = choose(parsed.models, parsed.sources)
    if parsed.list:
        for case in cases:
            console.print(case.name, markup=False, highlight=False)
        return 0
    options = Options(parsed.stage, parsed.target, parsed.backend, parsed.limit, max(1, parsed.jobs))
    results, interrupted = run_all(cases, options, console)
    for result in results:
        if not result.passed:
            console.print(f"{result.name}: {result.reason}", markup=False, highlight=False, soft_wrap=True)
    print_totals(results, console)
    if interrupted:
        console.print(f"Interrupted after {len(results)} of {len(cases)} models.")
    if parsed.json is not None:
        parsed.json.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    if interrupted:
        return 130
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
