"""Throughput of a loop as llvm-mca simulates it: cycles, and what they go to.

llvm-mca knows a core's pipelines and latencies, not its caches, branch predictor or prefetchers: every load hits L1 and
every branch is predicted.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

# Simulated instructions: enough for a steady state of short loops, few enough that long ones take a second.
_INSTRUCTIONS: Final = 20_000
_LEAST_ITERATIONS: Final = 50
_TRIPLE: Final = "aarch64-unknown-linux-gnu"
_NEWEST: Final = 40
# More independent sums than the longest latency times the throughput of any core here; two registers hold the factors.
_CHAINS: Final = 24


class McaError(RuntimeError):
    """llvm-mca is missing, too old for a core, or refused the code."""


@dataclass(frozen=True)
class Core:
    """A core whose pipelines LLVM models.

    Attributes:
        name: Whet's name of the target.
        model: name of the processor (-mcpu) whose scheduling model is taken.
        since: first release of LLVM with that model.
        note: how far the model is the core's own.
    """

    name: str
    model: str
    since: int
    note: str


# LLVM gives the Cortex-A72 the Cortex-A57's model, and up to 22 also the Cortex-A76; the A76 is simulated here with the
# model of the Neoverse N1, which is the same pipeline (decode and dispatch of the N1 are wider in the model).
CORES: Final[Mapping[str, Core]] = MappingProxyType(
    {
        core.name: core
        for core in (
            Core("cortex-a72", "cortex-a72", 14, "LLVM's model of the Cortex-A57, which it also gives the Cortex-A72"),
            Core(
                "cortex-a76", "neoverse-n1", 16, "LLVM's model of the Neoverse N1, which descends from the Cortex-A76"
            ),
            Core("neoverse-n1", "neoverse-n1", 16, "LLVM's model of the Neoverse N1"),
        )
    }
)


@dataclass(frozen=True)
class Throughput:
    """One loop on one core, in the steady state.

    Attributes:
        cycles: of one iteration.
        uops: micro-operations of one iteration.
        dispatch_width: micro-operations that the core takes up in a cycle.
        pressure: by pipeline, the cycles of one iteration that it is busy; the mean of pipelines of one kind.
        bottlenecks: by cause (a pipeline, "register dependencies", "memory dependencies"), the part of all cycles in
            which it made the backend wait, from 0 to 1. They overlap.
    """

    cycles: float
    uops: float
    dispatch_width: int
    pressure: Mapping[str, float]
    bottlenecks: Mapping[str, float]


@dataclass(frozen=True)
class Analyzer:
    """An llvm-mca of that release."""

    path: str
    version: int

    def throughput(self, code: str, core: Core, *, bottlenecks: bool = True) -> Throughput:
        """Simulate a loop's body over and over. Raises McaError where this release does not model the core.

        What it waits for takes a simulation of its own, which `bottlenecks` asks for.
        """
        if self.version < core.since:
            raise McaError(
                f"{self.path} is LLVM {self.version}: {core.note} is in LLVM {core.since} and later; "
                "install a newer one (Debian: apt-get install llvm-19) or name it with --llvm-mca"
            )
        options = ("--bottleneck-analysis", "--instruction-info=false", "--resource-pressure=false")
        text = self._run(code, core, *options) if bottlenecks else ""
        return _throughput(json.loads(self._run(code, core, "--json")), text)

    def peak(self, instruction: str, core: Core) -> float:
        """How many of one accumulating instruction a cycle, none of which waits for another.

        `instruction` has "{0}" for the accumulator's register, as in "fmla v{0}.4s, v30.4s, v31.4s".
        """
        code = "\n".join(instruction.format(chain) for chain in range(_CHAINS))
        return _CHAINS / self.throughput(code, core, bottlenecks=False).cycles

    def _run(self, code: str, core: Core, *options: str) -> str:
        iterations = max(_LEAST_ITERATIONS, _INSTRUCTIONS // max(1, code.count("\n")))
        command = [self.path, f"-mtriple={_TRIPLE}", f"-mcpu={core.model}", f"--iterations={iterations}", *options]
        done = subprocess.run(command, input=code, capture_output=True, text=True, check=False)
        if done.returncode:
            raise McaError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout


@cache
def find_analyzer(path: Path | None = None) -> Analyzer:
    """The llvm-mca at that path, else the newest on the PATH. Raises McaError where there is none."""
    if path is not None:
        return Analyzer(str(path), _version(str(path)))
    names = [*(f"llvm-mca-{version}" for version in range(_NEWEST, 13, -1)), "llvm-mca"]
    found = next((name for name in names if shutil.which(name)), None)
    if found is None:
        raise McaError("no llvm-mca on the PATH: install LLVM's tools (Debian: apt-get install llvm-19)")
    return Analyzer(found, _version(found))


def _version(path: str) -> int:
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"LLVM version (\d+)", text)
    if found is None:
        raise McaError(f"{path} --version names no version of LLVM: {text.strip()!r}")
    return int(found.group(1))


def _throughput(report: Mapping[str, Any], text: str) -> Throughput:
    """From the JSON report, and from the text of the bottleneck analysis, which JSON lacks."""
    (region,) = report["CodeRegions"]
    summary = region["SummaryView"]
    return Throughput(
        cycles=summary["TotalCycles"] / summary["Iterations"],
        uops=summary["TotaluOps"] / summary["Iterations"],
        dispatch_width=summary["DispatchWidth"],
        pressure=_pressure(report["TargetInfo"]["Resources"], region),
        bottlenecks=_bottlenecks(text),
    )


def _pressure(resources: list[str], region: Mapping[str, Any]) -> dict[str, float]:
    """Cycles of one iteration by pipeline, averaged over pipelines of one kind."""
    # the entry behind the last instruction is the sum over all of them
    last = len(region["InstructionInfoView"]["InstructionList"])
    kinds = [_kind(resource) for resource in resources]
    total = dict.fromkeys(kinds, 0.0)
    for entry in region["ResourcePressureView"]["ResourcePressureInfo"]:
        if entry["InstructionIndex"] == last:
            total[kinds[entry["ResourceIndex"]]] += entry["ResourceUsage"]
    return {name: busy / kinds.count(name) for name, busy in total.items() if busy}


def _kind(resource: str) -> str:
    """Of "A57UnitI.\\0": "I"; numbered units of a kind are one."""
    return re.sub(r"^.*Unit", "", resource.split(".")[0])


def _bottlenecks(text: str) -> dict[str, float]:
    found = re.findall(r"^\s+- (.+?)\s+\[ ([0-9.]+)% \]", text, re.MULTILINE)
    causes = {_kind(name) if "Unit" in name else name.lower(): float(part) / 100 for name, part in found}
    return {name: part for name, part in sorted(causes.items(), key=lambda item: -item[1]) if part >= 0.01}
