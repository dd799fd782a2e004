"""What a run of the pass manager did, as data and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PassReport:
    """One pass: whether it changed the graph, its time in seconds, operations by name before and after."""

    name: str
    modified: bool
    seconds: float
    before: Counter[str]
    after: Counter[str]
    changes: Mapping[str, int]
    """What the pass says that it did: kind of change to how often."""

    @property
    def difference(self) -> dict[str, int]:
        """Operation name to how many there are more (or, negative, fewer) than before."""
        names = sorted(self.before | self.after)
        return {name: self.after[name] - self.before[name] for name in names if self.after[name] != self.before[name]}

    def __str__(self) -> str:
        return _line(self, len(self.name))


@dataclass(frozen=True)
class Report:
    """All passes of a run, in order. Printing it gives a table."""

    passes: tuple[PassReport, ...]

    @property
    def seconds(self) -> float:
        return sum(entry.seconds for entry in self.passes)

    def __str__(self) -> str:
        if not self.passes:
            return "no passes"
        width = max(len(entry.name) for entry in self.passes)
        return "\n".join(_line(entry, width) for entry in self.passes)


def _line(entry: PassReport, width: int) -> str:
    counts = f"{entry.before.total():5} -> {entry.after.total():5} ops"
    what = ", ".join(f"{count} x {name}" for name, count in sorted(entry.changes.items()))
    difference = ", ".join(f"{count:+} {name}" for name, count in entry.difference.items())
    details = "; ".join(part for part in (what, difference) if part) if entry.modified else "nothing to do"
    return f"{entry.name:{width}}  {entry.seconds * 1000:8.1f} ms  {counts}  {details}"
