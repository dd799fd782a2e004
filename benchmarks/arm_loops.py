"""How near the inner loops for ARM cores come to the cores' peaks, where no board is at hand.

Whet's kernels and plain loop nests are compiled for each core, and llvm-mca simulates the hot loop of each. The peak is
measured in the same way, by a loop of independent multiply-adds. Caches are not simulated.

    python -m benchmarks.arm_loops --targets cortex-a72,neoverse-n1 --json arm-loops.json --out loops/
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from rich.table import Table

from benchmarks.arm_counts import executed
from benchmarks.arm_kernels import COLUMNS_INNERMOST, OPS, REDUCTION_INNERMOST, SOURCES, WHET, ArmOp, build
from benchmarks.assembly_loops import Loop, hot_loop, parse
from benchmarks.environment import wide_console
from benchmarks.llvm_mca import CORES, Analyzer, Core, McaError, find_analyzer

PLAIN: Final = (REDUCTION_INNERMOST, COLUMNS_INNERMOST)
# Per precision, what a core multiplies the fastest with: the feature that it needs, and the instruction.
_YARDSTICKS: Final[Mapping[bool, tuple[tuple[str | None, str], ...]]] = MappingProxyType(
    {
        False: ((None, "fmla v{0}.4s, v30.4s, v31.4s"),),
        True: (("dotprod", "sdot v{0}.4s, v30.16b, v31.16b"), (None, "smlal v{0}.8h, v30.8b, v31.8b")),
    }
)
_MARK: Final = "<!-- {} of arm-loops: python -m benchmarks.arm_loops --docs -->"


@dataclass(frozen=True)
class Result:
    """The hot loop of one operation on one core.

    Attributes:
        core: name of the target.
        op: name of the operation.
        source: whose code it is: `whet`, or a plain loop nest.
        multipliers: how often each instruction that multiplies stands in the loop.
        instructions: of one iteration, as `macs`, `cycles` and `spills` (loads and stores on the stack) are.
        peak: multiply-adds a cycle of the core's fastest instruction for the precision.
        pressure: by pipeline, the part of the cycles in which it is busy, from 0 to 1.
        bottlenecks: by cause, the part of the cycles in which it made the backend wait, from 0 to 1.
        executed: instructions of the whole operation on the emulated core; None: not counted.
    """

    core: str
    op: str
    source: str
    multipliers: Mapping[str, int]
    instructions: int
    macs: int
    cycles: float
    spills: int
    peak: float
    pressure: Mapping[str, float]
    bottlenecks: Mapping[str, float]
    executed: int | None = None

    @property
    def macs_per_cycle(self) -> float:
        """Multiply-adds a cycle."""
        return self.macs / self.cycles

    @property
    def share(self) -> float:
        """Part of the core's peak, from 0 to 1."""
        return self.macs_per_cycle / self.peak

    @property
    def reason(self) -> str:
        """What holds the loop back: the busiest pipeline, or where none is, what the backend waits for."""
        name, busy = max(self.pressure.items(), key=lambda item: item[1])
        if busy >= 0.9:
            return f"{name} {busy:.0%} busy"
        cause, part = next(iter(self.bottlenecks.items()), ("front end", 0.0))
        return f"{cause} ({part:.0%} of the cycles)" if part else cause


@cache
def peak(core: Core, integer: bool, features: tuple[str, ...], analyzer: Analyzer) -> float:
    """Multiply-adds a cycle of independent instructions: the fastest kind that the features bring."""
    text = next(line for feature, line in _YARDSTICKS[integer] if feature is None or feature in features)
    (instruction,) = parse(f"\t{text.format(0)}")
    assert not isinstance(instruction, str)
    return analyzer.peak(text, core) * instruction.products


def measure(op: ArmOp, core: Core, source: str, analyzer: Analyzer, *, counted: bool = False) -> tuple[Result, Loop]:
    """Compile one operation for one core and simulate its hot loop; `counted` runs all of it on the emulated core."""
    from whet.ir.target import get_target

    target = get_target(core.name)
    kernel = SOURCES[source](op, target)
    library = build(kernel, target)
    loop = hot_loop(library.inspect_source("asm"))
    found = analyzer.throughput(str(loop), core, bottlenecks=source == WHET)
    return Result(
        core=core.name,
        op=op.name,
        source=source,
        multipliers=dict(loop.multipliers),
        instructions=len(loop.instructions),
        macs=loop.products,
        cycles=round(found.cycles, 2),
        spills=loop.spills,
        peak=round(peak(core, op.integer, target.features, analyzer), 1),
        pressure={name: round(busy / found.cycles, 3) for name, busy in found.pressure.items()},
        bottlenecks={name: round(part, 3) for name, part in found.bottlenecks.items()},
        executed=executed(kernel, library, target.cpu) if counted else None,
    ), loop


def best_plain(results: Sequence[Result], ours: Result) -> Result | None:
    """The faster of the plain loop nests for the same operation and core."""
    same = [item for item in results if (item.core, item.op) == (ours.core, ours.op) and item.source != WHET]
    return max(same, key=lambda item: item.macs_per_cycle, default=None)


_HEADINGS: Final = (
    "core",
    "operation",
    "instructions",
    "MACs",
    "cycles",
    "MACs/cycle",
    "% of peak",
    "spills",
    "plain LLVM: MACs/cycle",
    "executed, in thousands",
    "plain LLVM: executed",
    "held back by",
)


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """One row an operation and core, beside the best plain loop nest's MACs a cycle."""
    found = []
    for item in (item for item in results if item.source == WHET):
        plain = best_plain(results, item)
        most, count = next(iter(item.multipliers.items()))
        found.append(
            (
                item.core,
                item.op,
                f"{item.instructions}, {count} of them `{most}`",
                str(item.macs),
                f"{item.cycles:.1f}",
                f"{item.macs_per_cycle:.1f} of {item.peak:.0f}",
                f"{100 * item.share:.0f}",
                str(item.spills),
                "" if plain is None else f"{plain.macs_per_cycle:.1f}",
                _thousands(item.executed),
                _thousands(None if plain is None else plain.executed),
                item.reason,
            )
        )
    return found


def _thousands(count: int | None) -> str:
    return "" if count is None else f"{count / 1000:,.0f}"


def table(results: Sequence[Result]) -> Table:
    """The rows for a terminal."""
    result = Table(*_HEADINGS, title="Hot loops, one iteration")
    for row in rows(results):
        result.add_row(*row)
    return result


def markdown(results: Sequence[Result]) -> str:
    """The rows for the documentation."""
    lines = [_HEADINGS, ("---",) * len(_HEADINGS), *rows(results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_docs(path: Path, results: Sequence[Result]) -> None:
    """Put the table between the marks in that file. Raises ValueError where they are missing."""
    text = path.read_text()
    start, end = _MARK.format("start"), _MARK.format("end")
    if start not in text or end not in text:
        raise ValueError(f"{path} has no lines {start!r} and {end!r}")
    head, tail = text.split(start)[0], text.split(end)[1]
    path.write_text(f"{head}{start}\n\n{markdown(results)}\n\n{end}{tail}")


def record(results: Sequence[Result], analyzer: Analyzer) -> dict[str, Any]:
    """All that is measured, as JSON can hold it."""
    return {
        "llvm_mca": analyzer.version,
        "models": {name: core.note for name, core in CORES.items() if any(item.core == name for item in results)},
        "loops": [asdict(item) for item in results],
    }


def read(path: Path) -> list[Result]:
    """The results in a file that `--json` wrote."""
    return [Result(**item) for item in json.loads(path.read_text())["loops"]]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(CORES), help="cores, separated by commas")
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument("--llvm-mca", type=Path, help="the program; default: the newest on the PATH")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--out", type=Path, help="write each hot loop into that folder")
    parser.add_argument("--counts", action="store_true", help="run each operation under qemu and count instructions")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into that documentation page")
    parser.add_argument("--read", type=Path, metavar="JSON", help="show results that were written before")
    options = parser.parse_args()
    if options.read:
        results = read(options.read)
    else:
        results = _measured(options)
    wide_console().print(table(results))
    if options.docs:
        write_docs(options.docs, results)


def _measured(options: argparse.Namespace) -> list[Result]:
    unknown = set(options.targets.split(",")) - set(CORES)
    if unknown:
        raise McaError(f"no model of {', '.join(sorted(unknown))}; known are {', '.join(CORES)}")
    analyzer = find_analyzer(options.llvm_mca)
    results = []
    for name in options.targets.split(","):
        for op in (op for op in OPS.values() if options.only in op.name):
            for source in (WHET, *PLAIN):
                result, loop = measure(op, CORES[name], source, analyzer, counted=options.counts)
                results.append(result)
                print(f"{name}: {op.name}, {source}: {result.macs_per_cycle:.2f} MACs/cycle", flush=True)
                if options.out:
                    options.out.mkdir(parents=True, exist_ok=True)
                    (options.out / f"{name} {op.name} {source}.s".replace(" ", "-").replace(",", "")).write_text(
                        str(loop)
                    )
    if options.json:
        options.json.write_text(json.dumps(record(results, analyzer), indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
