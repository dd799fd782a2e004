"""From `whet.optimize(..., tuning=...)` to faster kernels: what is measured, kept, used again, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from torch import nn

import whet
from whet.backends.tvm.kernels.decisions import Decision
from whet.backends.tvm.prepare import prepare
from whet.backends.tvm.schedule.rules import schedule_cpu
from whet.backends.tvm.tuning.database import Database
from whet.backends.tvm.tuning.task import Kernel, Task, find_tasks
from whet.errors import TuningError
from whet.frontend import import_model
from whet.ir import Graph
from whet.ir.target import Target, get_target
from whet.passes import QuantizeStatic


def network(width: int = 24) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 40, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(40, 40, 3, padding=1),
        nn.ReLU(),
    ).eval()


X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Clock:
    """A runner that runs nothing: the first kernel of a task takes 1 ms, the `fast`th 0.5 ms, every other 2 ms."""

    parallel = 1
    lost: ClassVar[dict[str, str]] = {}

    def __init__(self, fast: int = 3, interrupt_at: int | None = None) -> None:
        self.fast = fast
        self.interrupt_at = interrupt_at
        self.seen: dict[str, list[str]] = {}
        self.count = 0

    def open(self, target: Target, limit: float) -> Self:
        return self

    def close(self) -> None:
        self.seen["closed"] = []

    def measure(self, kernel: Kernel, task: str, reference: bool = False, insist: bool = False) -> dict[str, Any]:
        self.count += 1
        if self.count == self.interrupt_at:
            raise KeyboardInterrupt
        functions = self.seen.setdefault(task, [])
        if kernel.function not in functions:
            functions.append(kernel.function)
        place = functions.index(kernel.function)
        return {"seconds": {0: 1e-3, self.fast: 0.5e-3}.get(place, 2e-3)}


def optimize(runner: Any, folder: Path, model: nn.Module | None = None, **options: Any) -> whet.CompiledModule:
    tuning = whet.Tuning(runner=runner, database=folder, **options)
    return whet.optimize(model or network(), example_inputs=(X,), tuning=tuning, progress=False)


def test_real_kernels_are_tuned_and_compute_the_same(tmp_path: Path) -> None:
    compiled = optimize(None, tmp_path, trials=4)
    torch.testing.assert_close(compiled(X), network()(X), rtol=1e-3, atol=1e-5)
    report = compiled.report().tuning
    assert report is not None and sum(task.trials for task in report.tasks) == len(report.tasks) + 4
    assert all(task.seconds <= task.default_seconds for task in report.tasks)
    assert "of peak" in str(compiled.report())


def test_real_integer_kernels_agree_bit_for_bit(tmp_path: Path) -> None:
    common = {"passes": (QuantizeStatic(),), "calibration": [(X,)], "progress": False}
    plain = whet.optimize(network(), example_inputs=(X,), **common)
    tuned = whet.optimize(network(), example_inputs=(X,), tuning=whet.Tuning(trials=4, database=tmp_path), **common)
    assert torch.equal(plain(X), tuned(X))


def test_winners_are_used_by_the_next_model_without_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_CACHE", str(tmp_path))
    optimize(Clock(), tmp_path / "tuning", trials=40)
    plain = whet.optimize(network(), example_inputs=(X,), progress=False)
    schedules = [kernel.schedule for kernel in plain.report().kernels]
    assert any("order, unrolled" in schedule for schedule in schedules)
    torch.testing.assert_close(plain(X), network()(X), rtol=1e-3, atol=1e-5)
    without = whet.optimize(network(), example_inputs=(X,), tuning=False, progress=False)
    assert not any("order, unrolled" in kernel.schedule for kernel in without.report().kernels)


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    first, second = Clock(), Clock()
    optimize(first, tmp_path, trials=12)
    optimize(second, tmp_path, trials=12)
    once = {function for functions in first.seen.values() for function in functions}
    twice = [function for functions in second.seen.values() for function in functions if function in once]
    # the defaults and the candidates of the verdict are measured anew
    assert len(twice) <= 2 * len([task for task in second.seen if task != "closed"])


def test_an_interruption_keeps_what_was_measured_and_says_where(tmp_path: Path) -> None:
    runner = Clock(interrupt_at=10)
    with pytest.raises(KeyboardInterrupt) as caught:
        optimize(runner, tmp_path, trials=50)
    assert str(tmp_path) in caught.value.__notes__[0] and "closed" in runner.seen
    (records,) = tmp_path.glob("*.jsonl")
    defaults_and_peak = 1 + len([task for task in runner.seen if task not in ("closed", "peak")])
    assert records.read_text().count('"trial"') == 9 - defaults_and_peak


def test_a_candidate_that_is_not_really_faster_is_not_kept(tmp_path: Path) -> None:
    class Lucky(Clock):
        """Faster once, at first sight."""

        def measure(self, kernel: Kernel, task: str, reference: bool = False, insist: bool = False) -> dict[str, Any]:
            known = kernel.function in self.seen.get(task, [])
            answer = super().measure(kernel, task, reference)
            return {"seconds": 1e-3} if known else answer

    report = optimize(Lucky(), tmp_path, trials=40).report().tuning
    assert report is not None and all(task.decision.startswith("direct default") for task in report.tasks)
    assert report.speedup == 1.0


def test_time_and_trials_end_it(tmp_path: Path) -> None:
    runner = Clock()
    report = optimize(runner, tmp_path, trials=5, time_limit=None).report().tuning
    assert report is not None and sum(task.trials for task in report.tasks) == 5 + len(report.tasks)
    report = optimize(Clock(), tmp_path / "other", time_limit=1e-3).report().tuning
    assert report is not None and sum(task.trials for task in report.tasks) == len(report.tasks)


def test_records_of_another_shape_give_the_first_candidate(tmp_path: Path) -> None:
    target = get_target("x86")
    optimize(Clock(), tmp_path, trials=60)
    winners = dict(Database(tmp_path, target).winners())
    assert any(decision.tile is not None for decision in winners.values())
    optimize(Clock(), tmp_path, network(width=20), trials=6)
    lines = next(iter(tmp_path.glob("*.jsonl"))).read_text().splitlines()
    assert len(Database(tmp_path, target).path.read_text().splitlines()) == len(lines)
    tasks, _ = find_tasks(prepared(network(width=20)), target, lambda done, total: None)
    trials = [trial for task in tasks for trial in Database(tmp_path, target).trials(task.text)]
    assert any(trial.decision.tile in {item.tile for item in winners.values()} for trial in trials)


def prepared(model: nn.Module) -> Graph:
    return prepare(import_model(model, (X,)), get_target("x86"))


def tasks_of(model: nn.Module) -> list[Task]:
    return find_tasks(prepared(model), get_target("x86"), lambda done, total: None)[0]


def test_equal_kernels_are_one_task_and_constants_do_not_matter() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))).eval()
    graph = prepare(import_model(model, (torch.randn(1, 16, 8, 8),)), get_target("x86"))
    tasks, _ = find_tasks(graph, get_target("x86"), lambda done, total: None)
    assert [task.count for task in tasks] == [3]


@pytest.mark.parametrize("place", [0, 1, -1])
def test_every_tile_of_a_task_can_be_scheduled(place: int) -> None:
    for task in tasks_of(network()):
        for algorithm, tiles in task.space.items():
            kernel = task.kernel(get_target("x86"), schedule_cpu, Decision(tiles[place], algorithm=algorithm))
            assert kernel.weights and all(np.asarray(kernel.arguments[index].array).size for index in kernel.weights)


def test_symbolic_kernels_are_named_as_not_tuned() -> None:
    batch = torch.export.Dim("batch", max=8)
    graph = import_model(network(), (torch.randn(2, 3, 12, 12),), None, ({0: batch},))
    tasks, untuned = find_tasks(prepare(graph, get_target("x86")), get_target("x86"), lambda done, total: None)
    assert not tasks and "symbolic" in untuned["conv"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trials": 0}, "trials"),
        ({"time_limit": -1}, "time_limit"),
        ({"trials": None, "time_limit": None}, "never end"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TuningError, match=words):
        whet.Tuning(**options)


def test_backends_without_kernels_refuse_to_tune() -> None:
    with pytest.raises(TuningError, match="reference"):
        whet.optimize(network(), example_inputs=(X,), backend="reference", tuning=whet.Tuning(), progress=False)
