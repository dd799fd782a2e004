"""Tuning on three emulated boards that a tracker knows, of which one is lost in the middle."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import whet
from tests.backends.tvm.tuning.test_tuner import X, network
from tests.e2e.test_arm import run_on
from tests.remote.boards import KEY, Board, board
from tests.static_programs import same_bits
from whet.backends.tvm.tuning.tuner import _Loop
from whet.errors import DeviceError
from whet.frontend import import_model
from whet.ir.target import get_target
from whet.passes import Context, PassManager, QuantizeStatic
from whet.runtime.safetensors import RawTensor

pytestmark = [pytest.mark.arm, pytest.mark.timeout(1200)]

CORE = "cortex-a76"
BOARDS = ("one", "two", "three")
TRIALS = 18


@dataclass
class Log:
    """What became of each candidate: "measured", or why not; and each time that a board was given it."""

    trials: list[tuple[str, str, list[str]]] = field(default_factory=list)
    here: threading.local = field(default_factory=threading.local)

    @property
    def runs(self) -> list[str]:
        """Of the candidate that this thread tries; a list that nobody reads outside of trials."""
        found: list[str] = getattr(self.here, "runs", [])
        return found


class Watched(whet.Device):
    """Notes what it is given. `kill` is called while the board has the candidate of that number."""

    log: Log
    kill_at = -1
    count = 0
    kill: Any = None

    def run_kernel(self, library: bytes, *more: Any, **options: Any) -> tuple[list[RawTensor], float]:
        self.count += 1
        self.log.runs.append("begun")
        if self.count == self.kill_at:
            threading.Timer(0.05, self.kill).start()
        result = super().run_kernel(library, *more, **options)
        self.log.runs[-1:] = ["done"]
        return result


@pytest.fixture
def tracker() -> Iterator[Board]:
    with board("tracker") as made:
        yield made


@pytest.fixture
def boards(arm_device: Path, tracker: Board) -> Iterator[dict[str, Board]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                board(
                    *("serve", "--name", name, "--tracker", tracker.url),
                    python=(arm_device / "py64",),
                    environment={"QCPU": CORE},
                )
            )
            for name in BOARDS
        }


def known(tracker: Board) -> list[Watched]:
    """The boards as soon as the tracker knows them all."""
    deadline = time.monotonic() + 60
    while True:
        try:
            found = [item for item in Watched.tracked(tracker.url, KEY, limit=60) if isinstance(item, Watched)]
        except DeviceError:
            found = []
        if len(found) == len(BOARDS):
            return found
        assert time.monotonic() < deadline, f"the tracker knows {len(found)} boards"
        time.sleep(0.2)


def test_each_candidate_is_measured_once_or_reported(
    boards: dict[str, Board], tracker: Board, arm_device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board is killed with a candidate on it; the winners are right, in every integer, where they run at last."""
    log = Log()
    trial = _Loop._trial

    def noted(self: _Loop, item: Any, decision: Any) -> Any:
        log.here.runs = []
        done = trial(self, item, decision)
        log.trials.append((f"{item.task.text}\n{decision}", done[1].failure or "measured", log.here.runs))
        log.here.runs = []
        return done

    monkeypatch.setattr(_Loop, "_trial", noted)
    devices = known(tracker)
    assert {device.info.name for device in devices} == set(BOARDS)
    assert all("dotprod" in device.info.features for device in devices)
    for device in devices:
        device.log = log
    victim = next(device for device in devices if device.info.name == "two")
    victim.kill_at, victim.kill = 4, boards["two"].stop

    context = Context(target=get_target(CORE), calibration=[(X,)])
    graph = PassManager([QuantizeStatic()]).run(import_model(network(), (X,)), context).graph
    tuning = whet.Tuning(trials=TRIALS, runner=devices, database=tmp_path / "records")
    compiled = whet.optimize(graph, CORE, tuning=tuning, progress=False)

    report = compiled.report().tuning
    assert report is not None
    assert [name.split(" (")[0] for name in report.lost] == ["two"]
    assert len({candidate for candidate, _, _ in log.trials}) == len(log.trials) >= TRIALS
    lost = [failure for _, failure, _ in log.trials if failure.startswith("board lost")]
    assert len(lost) == 1, lost
    for candidate, outcome, runs in log.trials:
        # What does not build never comes to a board.
        assert runs == (["begun"] if outcome in lost else ["done"]) or (outcome != "measured" and not runs), candidate
    assert sum(outcome == "measured" for _, outcome, _ in log.trials) > TRIALS // 2
    failures = sum(sum(task.failures.values()) for task in report.tasks)
    assert failures == sum(outcome != "measured" for _, outcome, _ in log.trials)
    # The default kernel of each task is measured first, and is no candidate.
    assert sum(task.trials for task in report.tasks) == len(log.trials) + len(report.tasks)
    assert all(device.count > 3 for device in devices)

    compiled.save(tmp_path / "m.whet")
    (actual,), _ = run_on(CORE, arm_device, tmp_path / "m.whet", [X])
    here = whet.optimize(graph, "x86", tuning=False)(X)
    assert isinstance(here, torch.Tensor) and same_bits(actual, here)
