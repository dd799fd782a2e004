"""Tuning on many boards: who measures what, and what becomes of a board that is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

import whet
from tests.backends.tvm.tuning.test_tuner import X, network
from tests.remote.boards import Board, board
from whet.backends.tvm.tuning.remote import MOST_STRIKES, RemoteRunner, _Boards
from whet.errors import DeviceError, TuningError
from whet.runtime.safetensors import RawTensor


class Watched(whet.Device):
    """Notes every kernel that it measures; `at` the given number of them it calls `then` first."""

    def __init__(self, made: Board, at: int = -1, then: Any = None) -> None:
        super().__init__(made.url, made.device()._key.decode(), limit=60.0)
        self.measured: list[str] = []
        self.at = at
        self.then = then

    def run_kernel(self, library: bytes, *more: Any, **options: Any) -> tuple[list[RawTensor], float]:
        self.measured.append("begun")
        if len(self.measured) == self.at:
            self.then()
        result = super().run_kernel(library, *more, **options)
        self.measured[-1] = "done"
        return result


@pytest.fixture
def boards() -> Iterator[list[Board]]:
    with ExitStack() as stack:
        yield [stack.enter_context(board("serve", "--name", f"board {number}")) for number in range(2)]


def tune_on(devices: list[whet.Device], folder: Path, trials: int) -> whet.CompiledModule:
    tuning = whet.Tuning(trials=trials, runner=devices, database=folder)
    return whet.optimize(network(), example_inputs=(X,), tuning=tuning, progress=False)


@pytest.mark.slow
def test_a_board_that_vanishes_costs_one_trial_and_is_named(boards: list[Board], tmp_path: Path) -> None:
    lost = Watched(boards[0], at=4, then=lambda: boards[0].stop(signal.SIGKILL))
    kept = Watched(boards[1])
    compiled = tune_on([lost, kept], tmp_path, trials=8)
    torch.testing.assert_close(compiled(X), network()(X), rtol=1e-3, atol=1e-5)
    report = compiled.report().tuning
    assert report is not None
    assert [name.split(" (")[0] for name in report.lost] == ["board 0"]
    assert "lost board board 0" in str(report)
    assert lost.measured.count("begun") == 1
    failures = sum(sum(task.failures.values()) for task in report.tasks)
    assert failures <= 1, [task.failures for task in report.tasks]
    assert kept.measured.count("done") == len(kept.measured)


@pytest.mark.slow
def test_a_board_that_stands_still_is_left_alone(boards: list[Board], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("whet.remote.device._GRACE_SECONDS", 1.0)
    monkeypatch.setattr("whet.remote.device._HELLO_SECONDS", 1.0)
    stopped = Watched(boards[0], at=3, then=lambda: os.killpg(boards[0].process.pid, signal.SIGSTOP))
    kept = Watched(boards[1])
    tuning = whet.Tuning(trials=6, runner=[stopped, kept], database=tmp_path, trial_limit=5)
    compiled = whet.optimize(network(), example_inputs=(X,), tuning=tuning, progress=False)
    report = compiled.report().tuning
    assert report is not None
    assert [name.split(" (")[0] for name in report.lost] == ["board 0"]


def fake_device(name: str) -> Any:
    return whet.Device(f"rpc://{name}:1", "a key for the tests")


def test_the_last_board_ends_the_waiting() -> None:
    device = fake_device("one")
    pool = _Boards([device])
    assert pool.take() is device
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            pool.take()
        except TuningError as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    pool.retire(device, "it burnt")
    waiting.join(5)
    assert "it burnt" in str(raised[0])


def test_a_board_that_loses_all_it_gets_is_left_alone() -> None:
    one, two = fake_device("one"), fake_device("two")
    pool = _Boards([one, two])
    pool.take(), pool.take()
    for _ in range(MOST_STRIKES - 1):
        pool.give_back(one, strike="it crashed")
        assert pool.take() is one
    pool.give_back(one)
    assert pool.take() is one
    for number in range(MOST_STRIKES):
        assert not pool.lost
        pool.give_back(one, strike=f"crash {number}")
        if number < MOST_STRIKES - 1:
            assert pool.take() is one
    assert list(pool.lost) == ["rpc://one:1"]
    pool.give_back(two)
    assert pool.take() is two


def test_boards_that_cannot_be_reached_are_named() -> None:
    from whet.ir.target import get_target

    with pytest.raises(TuningError, match="no board is left"):
        RemoteRunner([whet.Device("rpc://127.0.0.1:1", "a key for the tests")]).open(get_target("x86"), 10)


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match=r"whet\.Device"):
        tune_on(["board"], tmp_path, trials=1)  # type: ignore[list-item]
    with pytest.raises(DeviceError, match="write rpc://"):
        whet.Device("board", "a key for the tests")
