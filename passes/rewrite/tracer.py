"""Remembering which patterns applied where, and why others did not."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from whet.ir.graph import Location, Operation, Value


@dataclass(frozen=True)
class Decline:
    """One pattern that did not apply at one operation, as text: the graph may be gone when it is read."""

    pattern: str
    operation: str
    location: Location
    reason: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        blamed = f" ({', '.join(self.values)})" if self.values else ""
        return f"{self.operation} at {self.location}: {self.reason}{blamed}"


@dataclass
class Tracer:
    """Collects declines and applications, to tell why a pattern did not match.

    Give one to `Context(tracer=...)` and print it afterwards. `patterns` limits it to patterns of these
    names. Only operations of the kind of a pattern's root are told of: the others were never looked at.
    """

    patterns: Collection[str] | None = None
    declined: list[Decline] = field(default_factory=list)
    applied: list[tuple[str, str, Location]] = field(default_factory=list)
    _seen: set[Decline] = field(default_factory=set)

    def decline(self, pattern: str, operation: Operation, reason: str, values: tuple[Value, ...]) -> None:
        """A pattern did not apply at `operation`; the same decline is kept once."""
        if self.patterns is not None and pattern not in self.patterns:
            return
        note = Decline(pattern, repr(operation), operation.location, reason, tuple(map(repr, values)))
        if note not in self._seen:
            self._seen.add(note)
            self.declined.append(note)

    def apply(self, pattern: str, operation: Operation) -> None:
        """A pattern applied at `operation`, which is still as it was."""
        if self.patterns is None or pattern in self.patterns:
            self.applied.append((pattern, repr(operation), operation.location))

    def report(self) -> str:
        """Everything collected, a paragraph a pattern."""
        names = dict.fromkeys([*(name for name, _, _ in self.applied), *(item.pattern for item in self.declined)])
        paragraphs = []
        for name in names:
            applied = [f"  applied   {text} at {place}" for pattern, text, place in self.applied if pattern == name]
            declined = [f"  declined  {item}" for item in self.declined if item.pattern == name]
            head = f"{name}: applied {len(applied)} time(s), declined {len(declined)} time(s)"
            paragraphs.append("\n".join([head, *applied, *declined]))
        return "\n\n".join(paragraphs) or "no pattern was tried"

    def __str__(self) -> str:
        return self.report()
