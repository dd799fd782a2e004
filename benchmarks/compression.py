"""What compression costs and gains, on the compiled modules: `python -m benchmarks.compression CASE --out DIR`.

Each case trains or loads a float model, compresses it, compiles both for x86, and evaluates both bundles on the whole
test set. A case whose compressed graph is saved is only compiled and evaluated, unless `--train` says otherwise.
DIR/CASE then holds float.whet, compressed.whet and result.json (with one case: DIR itself).

    python -m benchmarks.compression --list
    python -m benchmarks.compression lenet300 --out /tmp/lenet300
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import whet
from benchmarks import data
from benchmarks.cases import saved
from benchmarks.cases.case import Case, Metric, Result, Workshop
from benchmarks.cases.catalogue import CASES
from benchmarks.latency import environment
from whet.ir import Graph
from whet.passes import BindDimensions
from whet.passes.pruning.budget import flops
from whet.passes.quantization.coverage import coverage
from whet.progress import progress_bar

ROUNDS = 3
_NO_WEIGHTS = (".so", ".json")
"""Endings of the members of a bundle that are code or manifest."""


def compile_both(case: Case, graphs: tuple[Graph, Graph], folder: Path) -> tuple[Graph, Graph]:
    """Write float.whet and compressed.whet; the graphs as compiled, batches of one."""
    compiled = []
    for name, graph in zip(("float", "compressed"), graphs, strict=True):
        passes = [BindDimensions(default=1)] if graph.dimensions else []
        module = whet.optimize(graph, "x86", passes=passes)
        module.save(folder / f"{name}.whet")
        compiled.append(module.graph)
    np.savez(folder / "inputs.npz", **case.inputs())
    return compiled[0], compiled[1]


def weight_bytes(bundle: Path) -> int:
    """Bytes of the bundle's members that are neither code nor manifest, as they lie in the file."""
    with zipfile.ZipFile(bundle) as archive:
        return sum(item.compress_size for item in archive.infolist() if not item.filename.endswith(_NO_WEIGHTS))


def parameters(graph: Graph) -> int:
    """Elements of the constants that have dimensions."""
    return sum(value.constant.numel() for value in graph.constants if value.constant is not None)


def latencies(folder: Path, threads: int) -> tuple[float, float]:
    """Median milliseconds of both bundles, each in a process of its own, in turn."""
    rounds: dict[str, list[float]] = {"float": [], "compressed": []}
    for _ in range(ROUNDS):
        for name, times in rounds.items():
            command = [sys.executable, "-m", "benchmarks.compression", "--measure", str(folder / f"{name}.whet")]
            variables = {"TVM_NUM_THREADS": str(threads), "TVM_BIND_THREADS": "0"}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | variables)
            times.append(float(done.stdout.splitlines()[-1]))
    return statistics.median(rounds["float"]), statistics.median(rounds["compressed"])


def measure(bundle: Path) -> float:
    """Median milliseconds of a call of a bundle on the inputs beside it."""
    module = whet.load(bundle)
    return module.benchmark(**np.load(bundle.parent / "inputs.npz"), repeat=100)


def run(case: Case, folder: Path, train: bool, threads: int) -> Result:
    """Compress, compile, evaluate; everything is left in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bar() as show:
        show(f"{case.name}: loading", 0, 1)
        workshop = Workshop(data.cache_folder() / "training" / f"case-{case.name}", show, train)
        original = case.original(workshop)
        path = saved.place(case.name, case.committed)
        compressed = saved.saved_or_made(path, lambda: case.compress(original, workshop), train)
        show(f"{case.name}: compiling", 0, 1)
        graphs = compile_both(case, (original, compressed), folder)
        show(f"{case.name}: evaluating", 0, 1)
        bundles = [folder / "float.whet", folder / "compressed.whet"]
        metrics = case.compare(whet.load(bundles[0]), whet.load(bundles[1]))
    result = Result(
        case.name,
        metrics,
        (weight_bytes(bundles[0]), weight_bytes(bundles[1])),
        (bundles[0].stat().st_size, bundles[1].stat().st_size),
        (flops(graphs[0]), flops(graphs[1])),
        (parameters(graphs[0]), parameters(graphs[1])),
        latencies(folder, threads),
    )
    if case.integer:
        result.integer_share = coverage(graphs[1]).integer_share
    result.requirements = [(item.text, bool(item.holds(result))) for item in case.requirements]
    record = {"environment": environment(), "title": case.title, "reference": case.reference}
    (folder / "result.json").write_text(json.dumps(record | dataclasses.asdict(result), indent=1) + "\n")
    return result


def table(result: Result, title: str) -> Table:
    """One case as people read it."""
    shown = Table("", "float", "compressed", "", title=f"{result.case}: {title}", title_justify="left")
    for item in result.metrics:
        shown.add_row(item.name, f"{item.original:.4g}", f"{item.compressed:.4g}", _difference(item))
    for name, (original, compressed), unit in (
        ("weights", result.weight_bytes, "kB"),
        ("whole file", result.file_bytes, "kB"),
        ("FLOPs", result.flops, "M"),
        ("parameters", result.parameters, "k"),
        ("latency", result.milliseconds, "ms"),
    ):
        scale = {"kB": 1e3, "M": 1e6, "k": 1e3, "ms": 1.0}[unit]
        ratio = f"{original / compressed:.2f} x less"
        shown.add_row(name, f"{original / scale:.3f} {unit}", f"{compressed / scale:.3f} {unit}", ratio)
    if not np.isnan(result.integer_share):
        shown.add_row("MACs in integers", "", f"{result.integer_share:.1%}", "")
    for text, holds in result.requirements:
        shown.add_row("must show", "", text, "[green]yes[/green]" if holds else "[red]NO[/red]")
    return shown


def _difference(metric: Metric) -> str:
    if metric.interval is None:
        return f"{metric.difference:+.4g}"
    low, high = metric.interval
    return f"{metric.difference:+.2f} (95 %: {low:+.2f} .. {high:+.2f})"


def summary(results: list[Result]) -> Table:
    """What must be shown, and whether it was, case by case."""
    shown = Table("case", "must show", "")
    for result in results:
        for text, holds in result.requirements:
            shown.add_row(result.case, text, "[green]yes[/green]" if holds else "[red]NO[/red]")
    return shown


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="all by default")
    parser.add_argument("--list", action="store_true", help="print the names and what they must show, and stop")
    parser.add_argument("--out", type=Path, help="leave bundles and results there")
    parser.add_argument("--train", action="store_true", help="compress anew, even where a result is saved")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write all results there")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    console = Console()
    if options.measure:
        print(measure(options.measure))
        return 0
    if options.list:
        for case in CASES.values():
            console.print(f"{case.name:24} {case.title}: " + "; ".join(item.text for item in case.requirements))
        return 0
    unknown = sorted(set(options.cases) - set(CASES))
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; the cases are {', '.join(CASES)}")
    torch.set_num_threads(options.threads)
    names = options.cases or list(CASES)
    results = []
    with tempfile.TemporaryDirectory(prefix="whet-compression-") as temporary:
        top = options.out or Path(temporary)
        for name in names:
            folder = top if len(names) == 1 else top / name
            results.append(run(CASES[name], folder, options.train, options.threads))
            console.print(table(results[-1], CASES[name].title))
    if len(results) > 1:
        console.print(summary(results))
    if options.json:
        record = {"environment": environment(), "results": [dataclasses.asdict(result) for result in results]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return int(not all(holds for result in results for _, holds in result.requirements))


if __name__ == "__main__":
    raise SystemExit(main())
