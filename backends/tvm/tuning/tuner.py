"""The loop of tuning: which kernel gets the next trial, when to stop, and what is kept in the end."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from whet.backends.tuning import TaskReport, Tuning, TuningReport
from whet.backends.tvm.emit import Schedule
from whet.backends.tvm.kernels.decisions import DEFAULT, Decision
from whet.backends.tvm.tuning.database import Database, Trial, Winner, workload_key
from whet.backends.tvm.tuning.peak import peak_operations
from whet.backends.tvm.tuning.runner import Runner, opened
from whet.backends.tvm.tuning.search import Search
from whet.backends.tvm.tuning.similar import alike
from whet.backends.tvm.tuning.task import Task, find_tasks
from whet.errors import TuningError
from whet.ir.graph import Graph
from whet.ir.target import Target
from whet.passes.base import Progress

_VERDICT_ROUNDS: Final = 3
_LEAST_GAIN: Final = 0.99
"""A winner takes at most this share of the default's time, measured in turn: the rest is noise."""


def tune(
    graph: Graph, target: Target, schedule: Schedule, tuning: Tuning, database: Database, progress: Progress
) -> TuningReport:
    """Search for faster kernels of a prepared graph, and keep the winners in `database`.

    Trials go where they save most: to the kernel whose share of the model's time, times what its last trials saved, is
    largest. What the database has of an earlier run is not measured again. An interruption loses no trial.

    Raises TuningError where nothing can be measured: no kernel of the default schedule runs.
    """
    start = time.monotonic()
    tasks, untuned = find_tasks(graph, target, lambda done, total: progress("looking for kernels to tune", done, total))
    if not tasks:
        return TuningReport((), untuned, time.monotonic() - start)
    with opened(tuning.runner, target, tuning.trial_limit) as runner, _explained(database):
        peaks = peak_operations(runner, target)
        loop = _Loop([_Tuned(task, database) for task in tasks], runner, target, schedule, tuning, database, progress)
        loop.run(start)
        reports = [loop.verdict(tuned, peaks) for tuned in loop.measurable]
        lost = dict(runner.lost)
    return TuningReport(reports, untuned | loop.failed, time.monotonic() - start, lost)


@contextmanager
def _explained(database: Database) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interruption:
        interruption.add_note(f"what was measured is kept in {database.path}: tune again to go on from there")
        raise


class _Tuned:
    """A task, its search, and what became of its candidates."""

    def __init__(self, task: Task, database: Database) -> None:
        self.task = task
        self.search = Search(task.space, alike(task.text, database.winners()))
        self.failures: Counter[str] = Counter()
        self.default_seconds = float("nan")
        self.known = {trial.decision: trial for trial in database.trials(task.text)}

    @property
    def promise(self) -> float:
        """Seconds of the model that a few more trials may save."""
        return self.task.count * self.search.best_seconds * self.search.promise

    def tell(self, trial: Trial) -> None:
        self.search.tell(trial.decision, trial.seconds)
        if trial.failure:
            self.failures[_short(trial.failure)] += 1


class _Loop:
    def __init__(
        self,
        tuned: Sequence[_Tuned],
        runner: Runner,
        target: Target,
        schedule: Schedule,
        tuning: Tuning,
        database: Database,
        progress: Progress,
    ) -> None:
        self.measurable = list(tuned)
        self.failed: dict[str, str] = {}
        self.runner = runner
        self.target = target
        self.schedule = schedule
        self.tuning = tuning
        self.database = database
        self.progress = progress
        self.done = 0

    def run(self, start: float) -> None:
        """Measure the defaults, then candidates until time, trials or promise run out."""
        for index, item in enumerate(self.measurable):
            self.progress("measuring default kernels", index, len(self.measurable))
            self._measure_default(item)
        self.measurable = [item for item in self.measurable if item.default_seconds == item.default_seconds]
        if not self.measurable:
            raise TuningError("no default kernel could be measured: " + "; ".join(self.failed.values()))
        self.deadline = float("inf") if self.tuning.time_limit is None else start + self.tuning.time_limit
        self.start = time.monotonic()
        with ThreadPoolExecutor(self.runner.parallel) as pool:
            while batch := self._next(self.runner.parallel):
                for item, trial, board_lost in pool.map(self._trial, *zip(*batch, strict=True)):
                    # a board that vanished says nothing of the candidate: a later run may try it again
                    if not board_lost:
                        self.database.add_trial(item.task.text, trial)
                    item.tell(trial)
                self.done += len(batch)
                self._show()

    def _measure_default(self, item: _Tuned) -> None:
        answer = self._measured(item, DEFAULT, reference=True, insist=True)
        if "failure" in answer:
            self.failed[item.task.name] = str(answer["failure"])
            return
        item.default_seconds = float(answer["seconds"])
        item.search.tell(DEFAULT, item.default_seconds)

    def _next(self, count: int) -> list[tuple[_Tuned, Decision]]:
        """The next candidates; one that an earlier run measured counts as told at once."""
        batch: list[tuple[_Tuned, Decision]] = []
        busy: set[str] = set()
        while len(batch) < count and not self._spent(len(batch)):
            open_tasks = [
                item
                for item in self.measurable
                if item.search.stale < self.tuning.patience and item.task.text not in busy
            ]
            if not open_tasks:
                return batch
            item = max(open_tasks, key=lambda tuned: tuned.promise)
            candidate = item.search.propose()
            if candidate is None:
                item.search.stale = self.tuning.patience
            elif candidate in item.known:
                item.tell(item.known[candidate])
            else:
                batch.append((item, candidate))
                busy.add(item.task.text)
        return batch

    def _spent(self, waiting: int) -> bool:
        trials = self.tuning.trials
        return time.monotonic() > self.deadline or (trials is not None and self.done + waiting >= trials)

    def _trial(self, item: _Tuned, decision: Decision) -> tuple[_Tuned, Trial, bool]:
        answer = self._measured(item, decision)
        return item, Trial(decision, answer.get("seconds"), str(answer.get("failure", ""))), "lost" in answer

    def _measured(
        self, item: _Tuned, decision: Decision, reference: bool = False, insist: bool = False
    ) -> dict[str, Any]:
        try:
            kernel = item.task.kernel(self.target, self.schedule, decision)
        except Exception as error:  # whatever a candidate raises is its result
            return {"failure": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
        return self.runner.measure(kernel, workload_key(item.task.text), reference, insist)

    def _show(self) -> None:
        before = sum(item.task.count * item.default_seconds for item in self.measurable)
        now = sum(item.task.count * item.search.best_seconds for item in self.measurable)
        elapsed = time.monotonic() - self.start
        limit = min(self.deadline - self.start, elapsed * (self.tuning.trials or float("inf")) / max(1, self.done))
        text = f"tuning: {before * 1e3:.2f} -> {now * 1e3:.2f} ms, {self.done} trials"
        self.progress(text, int(elapsed), max(int(elapsed), int(min(limit, 1e6))))

    def verdict(self, item: _Tuned, peaks: dict[str, float]) -> TaskReport:
        """Measure the best candidate and the default in turn, and keep what is really faster."""
        seconds = {DEFAULT: [item.default_seconds], item.search.best: [item.search.best_seconds]}
        for _ in range(_VERDICT_ROUNDS if item.search.best != DEFAULT else 0):
            for decision, times in seconds.items():
                answer = self._measured(item, decision, insist=True)
                times.append(float(answer.get("seconds", "inf")))
        # the first time of the best candidate was chosen for being small
        medians = {decision: statistics.median(times[1:] or times) for decision, times in seconds.items()}
        better = medians[item.search.best] <= _LEAST_GAIN * medians[DEFAULT]
        chosen = item.search.best if better else DEFAULT
        self.database.add_winner(item.task.text, Winner(chosen, medians[chosen], medians[DEFAULT]))
        return TaskReport(
            item.task.name,
            item.task.count,
            medians[DEFAULT],
            medians[chosen],
            item.task.operations,
            peaks.get(item.task.precision, float("nan")),
            len(item.search.measured),
            item.failures,
            str(chosen),
        )


def _short(failure: str) -> str:
    """The kind of a failure, for counting."""
    return failure.partition(":")[0] if ":" in failure else failure
