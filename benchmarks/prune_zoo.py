"""Prunes a long list of architectures, beside torch-pruning: `python -m benchmarks.prune_zoo`.

Each model is exported and structurally pruned at one ratio in a process of its own with a time limit. A model passes
when every group of channels, neurons or heads that can be pruned was, parameters and FLOPs each fell by at least the
ratio, the pruned graph verifies and runs in the interpreter, and, with --compile, the compiled module's relative
error against the interpreter is at most 1e-4. With --json a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from benchmarks.environment import environment
from benchmarks.models.case import ModelCase
from benchmarks.models.prune_cases import prune_cases
from benchmarks.models.prune_check import PruneResult
from benchmarks.models.prune_peer import NOT_INSTALLED, installed
from benchmarks.zoo import Options, Runner, choose

REASON_WIDTH = 60
TABLE_WIDTH = 180
"""Columns of the table where it does not go to a terminal."""


class PruneRunner(Runner):
    """Runs `benchmarks.models.prune_check` in subprocesses."""

    result_type = PruneResult

    def __init__(self, options: Options, scratch: Path, ratio: float, compiled: bool, peer: bool) -> None:
        super().__init__(options, scratch)
        self._flags = ["--ratio", str(ratio)]
        self._flags += ["--target", options.target] if compiled else []
        self._flags += ["--peer"] if peer else []

    def _command(self, name: str, answer: Path) -> list[str]:
        return [sys.executable, "-m", "benchmarks.models.prune_check", name, "--json", str(answer), *self._flags]


class Record:
    """The results of one run, on disk after each model.

    Args:
        path: a JSON file; what it holds of a run with the same options is not measured again. None: memory only.
        options: what the results depend on.
    """

    def __init__(self, path: Path | None, options: Mapping[str, object]) -> None:
        self._path = path
        self._about = {"options": dict(options), "environment": environment()}
        self.results: dict[str, PruneResult] = {}
        found = json.loads(path.read_text("utf-8")) if path is not None and path.exists() else {"options": None}
        if found["options"] == self._about["options"]:
            self.results = {row["name"]: PruneResult(**row) for row in found["results"]}

    def add(self, result: PruneResult) -> None:
        """Keep a result, and write the file anew."""
        self.results[result.name] = result
        if self._path is None:
            return
        rows = [asdict(row) for row in self.results.values()]
        written = self._path.with_suffix(".part")
        written.write_text(json.dumps(self._about | {"results": rows}, indent=1) + "\n", "utf-8")
        written.replace(self._path)


def run_all(
    cases: Sequence[ModelCase], runner: PruneRunner, jobs: int, record: Record, console: Console
) -> list[PruneResult]:
    """Check all models that `record` has not, printing each as it ends; after Ctrl-C those that had ended."""
    missing = [case for case in cases if case.name not in record.results]
    if len(missing) < len(cases):
        console.print(f"{len(cases) - len(missing)} of {len(cases)} models are in the record already")
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(runner.run, case) for case in missing]
        try:
            for done, future in enumerate(as_completed(futures), start=len(cases) - len(missing) + 1):
                result = future.result()
                assert isinstance(result, PruneResult)
                record.add(result)
                text = f"{done}/{len(cases)}  {_line(result)}"
                console.print(text, markup=False, highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            runner.stop()
    return [record.results[case.name] for case in cases if case.name in record.results]


def _line(result: PruneResult) -> str:
    verdict = "pass" if result.passed else "FAIL"
    numbers = f"groups {result.pruned}/{result.groups}  parameters {result.parameters:.2f}  FLOPs {result.flops:.2f}"
    error = "" if result.error is None else f"  error {result.error:.1e}"
    reason = " ".join(result.reason.split())[: 2 * REASON_WIDTH]
    return f"{verdict}  {result.name:40} {numbers}  {result.prune_seconds:5.1f} s{error}  {reason}".rstrip()


def print_table(results: Sequence[PruneResult], peer: bool, console: Console) -> None:
    """A row a model with the fractions that are left, and the shares that passed, beside the peer's."""
    table = Table("model", "whet", "parameters", "FLOPs", "torch-pruning", "parameters", "FLOPs", "why not")
    for result in results:
        reasons = (result.reason, str(result.peer.get("reason", "")))
        table.add_row(
            result.name,
            "pass" if result.passed else "FAIL",
            f"{result.parameters:.2f}",
            f"{result.flops:.2f}",
            _peer_verdict(result, peer),
            *(_fraction(result.peer.get(name)) for name in ("parameters", "flops")),
            " / ".join(" ".join(reason.split())[:REASON_WIDTH] for reason in reasons if reason),
        )
    console.print(table)
    for source in dict.fromkeys(result.source for result in results):
        mine = [result for result in results if result.source == source]
        theirs = sum(bool(result.peer.get("passed")) for result in mine) if peer else NOT_INSTALLED
        console.print(f"{source}: whet {sum(result.passed for result in mine)}, torch-pruning {theirs}, of {len(mine)}")


def _peer_verdict(result: PruneResult, peer: bool) -> str:
    if not peer:
        return NOT_INSTALLED
    return "pass" if result.peer.get("passed") else "FAIL"


def _fraction(number: object) -> str:
    return f"{number:.2f}" if isinstance(number, float) else "-"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prune_zoo", description=__doc__)
    parser.add_argument("--models", help="comma-separated names; all by default")
    parser.add_argument("--sources", help="comma-separated: torchvision, timm, transformers")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of channels to remove")
    parser.add_argument("--compile", action="store_true", help="compile, and compare with the interpreter")
    parser.add_argument("--no-peer", action="store_true", help="leave torch-pruning out")
    parser.add_argument("--target", default="x86")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one model")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--json", type=Path, help="write the results here, and go on from what is there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune the zoo; the exit status is 0 when everything passed."""
    parsed = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    cases = choose(parsed.models, parsed.sources, prune_cases)
    if parsed.list:
        for case in cases:
            console.print(case.name, markup=False, highlight=False)
        return 0
    peer = installed() and not parsed.no_peer
    options = Options("compile", parsed.target, "tvm", parsed.limit, max(1, parsed.jobs))
    with TemporaryDirectory(prefix="whet-prune-") as scratch:
        runner = PruneRunner(options, Path(scratch), parsed.ratio, parsed.compile, peer)
        asked = {"ratio": parsed.ratio, "target": parsed.target if parsed.compile else None, "peer": peer}
        results = run_all(cases, runner, options.jobs, Record(parsed.json, asked), console)
    print_table(results, peer, console)
    return 0 if results and all(result.passed for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
