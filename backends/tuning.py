"""What a user says of tuning, and what is said back; nothing here knows of a compiler."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.errors import TuningError

DEFAULT_SECONDS = 1200.0


def cache_folder() -> Path:
    """Where records lie by default: `WHET_CACHE`, or `whet` in the user's cache."""
    given = os.environ.get("WHET_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whet"


@dataclass(frozen=True)
class Tuning:
    """How kernels are searched for: each candidate is built, checked against the default kernel, and measured.

    Args:
        trials: candidates in all; None: as many as the time allows.
        time_limit: seconds in all; None: as long as the trials take.
        database: a folder for the records, which later models use again; None: `tuning` in the user's cache.
        patience: a kernel is left alone after so many candidates without a better one.
        trial_limit: seconds that one candidate may take to be built and measured; then it is killed.
        runner: where candidates run: a `whet.Device`, or several boards of one kind, each of which measures a candidate
            at a time; None: this machine.

    Raises TuningError for numbers out of their range.
    """

    trials: int | None = None
    time_limit: float | None = DEFAULT_SECONDS
    database: str | Path | None = None
    patience: int = 32
    trial_limit: float = 30.0
    runner: Any = None

    def __post_init__(self) -> None:
        for name in ("trials", "time_limit", "patience", "trial_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TuningError(f"Tuning: {name} must be positive, not {value!r}")
        if self.trials is None and self.time_limit is None:
            raise TuningError("Tuning: give trials or a time_limit, or it would never end")

    @property
    def folder(self) -> Path:
        """Where the records are kept."""
        return cache_folder() / "tuning" if self.database is None else Path(self.database)


@dataclass
class TaskReport:
    """What tuning one kernel gave.

    Attributes:
        name: its operations, and the shape of its result.
        count: how often the model calls it.
        default_seconds: of one call of the default kernel.
        seconds: of one call of the kernel that was chosen.
        operations: floating or integer operations of one call.
        peak: operations per second that this machine reaches at most in this precision; NaN where unknown.
        trials: candidates measured, those of earlier runs included.
        failures: reason -> how many candidates failed so.
        decision: what was chosen, in words.
    """

    name: str
    count: int
    default_seconds: float
    seconds: float
    operations: int
    peak: float = float("nan")
    trials: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    decision: str = ""

    @property
    def speed(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds


@dataclass(frozen=True)
class TuningReport:
    """All kernels that were tuned, and what was left alone (name -> why); prints as a table.

    `lost` are boards that could not be reached any more, and why.
    """

    tasks: Sequence[TaskReport]
    untuned: dict[str, str]
    seconds: float
    lost: Mapping[str, str] = field(default_factory=dict)

    @property
    def speedup(self) -> float:
        """Time of all these kernels by default, divided by what they take now."""
        after = sum(task.count * task.seconds for task in self.tasks)
        return sum(task.count * task.default_seconds for task in self.tasks) / after if after else 1.0

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=150, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()

    def table(self) -> Any:
        """A rich table: a row a kernel, the largest share of the time first."""
        from rich.table import Table

        total = sum(task.count * task.default_seconds for task in self.tasks) or 1.0
        shown = Table("kernel", "calls", "share", "ms", "tuned", "GOP/s", "of peak", "trials", "failed", "chosen")
        for task in sorted(self.tasks, key=lambda item: -item.count * item.default_seconds):
            share = task.speed / task.peak
            shown.add_row(
                task.name,
                str(task.count),
                f"{task.count * task.default_seconds / total:.1%}",
                f"{task.default_seconds * 1e3:.3f}",
                f"{task.seconds * 1e3:.3f}",
                f"{task.speed / 1e9:.1f}",
                f"{share:.0%}" if share == share else "-",
                str(task.trials),
                ", ".join(f"{count} {reason}" for reason, count in task.failures.most_common(2)),
                task.decision,
            )
        shown.caption = f"{self.speedup:.2f} x faster in {self.seconds:.0f} s" + "".join(
            f"\nnot tuned: {name}: {why}" for name, why in self.untuned.items()
        )
        shown.caption += "".join(f"\nlost board {name}: {why}" for name, why in self.lost.items())
        return shown
