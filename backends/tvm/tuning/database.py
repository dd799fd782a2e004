"""Records of tuning, kept between models: a folder with one file of JSON lines a device and version of TVM.

{"task": key, "text": workload}                                what is tuned
{"trial": key, "decision": ..., "seconds": ..., "failure": ...}  one candidate, measured or failed
{"winner": key, "decision": ..., "seconds": ..., "default_seconds": ...}  after both were measured in turn
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import tvm

from whet.backends.tvm.kernels.decisions import DEFAULT, Decision
from whet.errors import TuningError
from whet.ir.target import Target

FORMAT: Final = 1
"""Counts changes of kernels and schedules that make older records mean something else."""


@dataclass(frozen=True)
class Trial:
    """One candidate: seconds of a call, or why there are none."""

    decision: Decision
    seconds: float | None
    failure: str = ""


@dataclass(frozen=True)
class Winner:
    """The decision that a workload is compiled with, and what it takes beside the default one."""

    decision: Decision
    seconds: float
    default_seconds: float


@dataclass
class _Task:
    text: str
    trials: list[Trial] = field(default_factory=list)
    winner: Winner | None = None


def workload_key(text: str) -> str:
    """A short name of a workload."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Database:
    """The records for one target.

    Args:
        folder: of all targets.
        target: whose records are read and written. A target of another name with the same facts has the same records.

    Raises TuningError for a file that cannot be read or written, and names it.
    """

    def __init__(self, folder: Path, target: Target) -> None:
        facts = asdict(target) | {"name": "", "activation_dtype": target.activation_dtype.value}
        stamp = hashlib.sha256(json.dumps([FORMAT, facts], sort_keys=True).encode()).hexdigest()[:12]
        self.path = folder / f"{target.name.replace(':', '-')}-tvm{tvm.__version__}-{stamp}.jsonl"
        self.path = next(iter(folder.glob(f"*-tvm{tvm.__version__}-{stamp}.jsonl")), self.path)
        self._tasks: dict[str, _Task] = {}
        for line in self._lines():
            self._take(line)

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TuningError(f"cannot read the tuning records {self.path}: {error}; delete the file") from error
        lines = text.splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # a write that was cut off
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise TuningError(f"{self.path}:{number} is no tuning record: {error}; delete the line") from error

    def _take(self, line: dict[str, Any]) -> None:
        try:
            if "task" in line:
                self._tasks.setdefault(line["task"], _Task(line["text"]))
            elif "trial" in line:
                trial = Trial(Decision.from_json(line["decision"]), line["seconds"], line["failure"])
                self._tasks[line["trial"]].trials.append(trial)
            else:
                winner = Winner(Decision.from_json(line["decision"]), line["seconds"], line["default_seconds"])
                self._tasks[line["winner"]].winner = winner
        except (KeyError, TypeError, ValueError) as error:
            raise TuningError(f"{self.path} holds what is no tuning record: {line}; delete the line") from error

    def decide(self, text: str) -> Decision:
        """What was chosen for a workload; the default where it was never tuned."""
        task = self._tasks.get(workload_key(text))
        return DEFAULT if task is None or task.winner is None else task.winner.decision

    def trials(self, text: str) -> list[Trial]:
        """What was measured for a workload, in order."""
        task = self._tasks.get(workload_key(text))
        return [] if task is None else list(task.trials)

    def winner(self, text: str) -> Winner | None:
        """The last verdict on a workload."""
        task = self._tasks.get(workload_key(text))
        return None if task is None else task.winner

    def winners(self) -> Iterator[tuple[str, Decision]]:
        """Every workload with its verdict, for workloads that are like it."""
        for task in self._tasks.values():
            if task.winner is not None:
                yield task.text, task.winner.decision

    def add_trial(self, text: str, trial: Trial) -> None:
        """Keep a candidate's result, at once."""
        fields = {"decision": trial.decision.to_json(), "seconds": trial.seconds, "failure": trial.failure}
        self._append(text, {"trial": workload_key(text), **fields})

    def add_winner(self, text: str, winner: Winner) -> None:
        """Keep the verdict on a workload, at once."""
        fields = {
            "decision": winner.decision.to_json(),
            "seconds": winner.seconds,
            "default_seconds": winner.default_seconds,
        }
        self._append(text, {"winner": workload_key(text), **fields})

    def _append(self, text: str, line: dict[str, Any]) -> None:
        lines = [line] if workload_key(text) in self._tasks else [{"task": workload_key(text), "text": text}, line]
        written = "".join(json.dumps(item) + "\n" for item in lines)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _cut_unfinished(self.path)
            # one write of whole lines: processes that tune at the same time do not mix theirs
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, written.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise TuningError(f"cannot write the tuning records {self.path}: {error}") from error
        for item in lines:
            self._take(item)


def _cut_unfinished(path: Path) -> None:
    """End a line that an interrupted write left open: what follows must not continue it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        content_end = file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read(content_end + 1).rfind(b"\n") + 1
        file.truncate(whole)
