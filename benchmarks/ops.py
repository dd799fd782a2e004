"""The pass table of operators: `python -m benchmarks.ops`.

Every operator of `torch.testing`'s operator database is called with its own samples, and the calls are
exported, converted and run; what comes out is compared with eager (floating point: relative error at most
1e-4, NaN in the same places; integers: exactly). Samples without meaning in an inference graph (random
numbers, complex numbers, results whose shape depends on the data) are counted apart, with the reason; so
are operators that have no converter.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch.testing._internal.common_methods_invocations import op_db

from benchmarks.operators.check import Row, check_operators

DTYPES = {
    "float32": torch.float32,
    "int64": torch.int64,
    "bool": torch.bool,
    "int32": torch.int32,
    "uint8": torch.uint8,
}
REASON_WIDTH = 160

_BATCH = {"reference": 1, "tvm": 8}
"""Operators checked in one module: exporting one costs more than compiling its kernels."""

Task = tuple[int, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit status is 1 where less than the wanted share passes."""
    options = _parser().parse_args(arguments)
    console = Console()
    part, parts = (int(number) for number in options.part.split("/"))
    tasks = list(_tasks(options.ops, options.dtypes))[part - 1 :: parts]
    known = _hopeless(options.after) if options.after else {}
    rows = _run([task for task in tasks if _key(task) not in known], options, console)
    rows += [known[_key(task)] for task in tasks if _key(task) in known]
    rows.sort(key=lambda row: (row.operator, row.variant, row.dtype))
    console.print(_table(rows, options.failures))
    console.print(_summary(rows))
    return 0 if _rate(rows) >= options.require else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description="The pass table of operators.")
    parser.add_argument("--ops", nargs="*", default=[], help="only these operators of the database")
    parser.add_argument("--dtypes", nargs="*", choices=list(DTYPES), default=list(DTYPES)[:3])
    parser.add_argument("--backend", choices=("reference", "tvm"), default="reference")
    parser.add_argument("--samples", type=int, default=12, help="at most so many samples an operator and dtype")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--batch", type=int, default=0, help="operators checked in one module; 0: one, or 8 with tvm")
    parser.add_argument("--failures", action="store_true", help="list only what failed")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="only every N-th operator, from the I-th on")
    parser.add_argument("--json", type=Path, help="append every row to this file, one JSON object a line")
    parser.add_argument(
        "--after",
        type=Path,
        help="the --json file of a reference run: where nothing could be converted, nothing is tried again",
    )
    parser.add_argument("--require", type=float, default=0.0, help="share of samples that has to pass, 0..1")
    return parser


def _tasks(names: Sequence[str], dtypes: Sequence[str]) -> Iterator[Task]:
    known = {operator.name for operator in op_db}
    if unknown := set(names) - known:
        raise SystemExit(f"not in the operator database: {', '.join(sorted(unknown))}")
    for index, operator in enumerate(op_db):
        if names and operator.name not in names:
            continue
        supported = operator.supported_dtypes("cpu")  # type: ignore[no-untyped-call]
        yield from ((index, name) for name in dtypes if DTYPES[name] in supported)


def _key(task: Task) -> tuple[str, str, str]:
    index, dtype = task
    return op_db[index].name, op_db[index].variant_test_name, dtype


def _hopeless(path: Path) -> dict[tuple[str, str, str], Row]:
    """Rows of an earlier run in which no sample could be tried: no backend changes that."""
    rows = [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(row.operator, row.variant, row.dtype): row for row in rows if not row.passed and not row.failed}


def _quiet() -> None:
    """One thread a process, and no log of refused exports by torch: the table has the reason."""
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)


def _run(tasks: Sequence[Task], options: argparse.Namespace, console: Console) -> list[Row]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rows: list[Row] = []
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("operators", total=len(tasks))
        for row in _rows(tasks, options):
            rows.append(row)
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
            progress.update(bar, advance=1, description=row.operator)
    return rows


def _rows(tasks: Sequence[Task], options: argparse.Namespace) -> Iterator[Row]:
    """In this process for one job, as they come from the others for more."""
    size = options.batch or _BATCH[options.backend]
    batches = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    if options.jobs == 1:
        _quiet()
        for batch in batches:
            yield from _check(batch, options.samples, options.backend)
        return
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), initializer=_quiet) as pool:
        futures: dict[Future[list[Row]], Sequence[Task]] = {
            pool.submit(_check, batch, options.samples, options.backend): batch for batch in batches
        }
        for future in as_completed(futures):
            yield from _outcome(future, futures[future])


def _check(batch: Sequence[Task], samples: int, backend: str) -> list[Row]:
    return check_operators([(index, DTYPES[name]) for index, name in batch], samples, backend)


def _outcome(future: Future[list[Row]], batch: Sequence[Task]) -> list[Row]:
    """The rows; an error outside of the samples' own checks is a failure of every operator of the batch."""
    error = future.exception()
    if error is None:
        return future.result()
    reason = f"{type(error).__name__}: {error}"
    return [Row(op_db[index].name, op_db[index].variant_test_name, name, failed=[reason]) for index, name in batch]


def _table(rows: Sequence[Row], only_failures: bool) -> Table:
    table = Table("operator", "variant", "dtype", "samples", "passed", "failed", "n/a", "first reason")
    for row in rows:
        if only_failures and not row.failed:
            continue
        reasons = [*row.failed, *row.uncovered, *row.inapplicable]
        style = "red" if row.failed else ("dim" if not row.passed else "")
        table.add_row(
            row.operator,
            row.variant,
            row.dtype,
            str(row.applicable + len(row.inapplicable) + len(row.uncovered)),
            str(row.passed),
            str(len(row.failed)),
            str(len(row.inapplicable)),
            (reasons[0] if reasons else "")[:REASON_WIDTH],
            style=style,
        )
    return table


def _summary(rows: Sequence[Row]) -> Table:
    """Totals first, then what was left out and why."""
    passed = sum(row.passed for row in rows)
    applicable = sum(row.applicable for row in rows)
    full = [row for row in rows if row.applicable and not row.failed]
    inapplicable = Counter(reason for row in rows for reason in row.inapplicable)
    uncovered = Counter(name for row in rows for name in row.uncovered)
    table = Table("what", "count", title="all operators")
    table.add_row("samples tried", str(applicable))
    table.add_row("passed", f"{passed} ({100 * _rate(rows):.2f} %)")
    table.add_row("failed", str(applicable - passed))
    tried = sum(bool(row.applicable) for row in rows)
    table.add_row("operators x dtypes with every tried sample passed", f"{len(full)} of {tried}")
    none = sum(bool(row.uncovered) and not row.applicable for row in rows)
    table.add_row("no converter: operators x dtypes", str(none))
    table.add_row("no converter: samples", str(uncovered.total()))
    table.add_row("not applicable: samples", str(inapplicable.total()))
    if converted := {name for row in rows for name in row.converted}:
        table.add_row("ATen operators converted", str(len(converted)))
    table.add_section()
    for reason, count in inapplicable.most_common():
        table.add_row(f"not applicable: {reason}", str(count), style="dim")
    for name, count in uncovered.most_common():
        table.add_row(f"no converter: {name}", str(count), style="dim")
    return table


def _rate(rows: Sequence[Row]) -> float:
    applicable = sum(row.applicable for row in rows)
    return sum(row.passed for row in rows) / applicable if applicable else 1.0


if __name__ == "__main__":
    raise SystemExit(main())
