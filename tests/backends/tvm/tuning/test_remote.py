"""Boards behind TVM's RPC, stood for by servers on this machine: one by itself, and two behind a tracker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import whet
from tests.backends.tvm.tuning.test_tuner import X, network
from whet.backends.tvm.tuning.remote import RemoteRunner
from whet.errors import TuningError

pytest.importorskip("tornado", reason="TVM's RPC needs tornado")
START_SECONDS = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(module: str, port: int, *options: str) -> Iterator[int]:
    """A TVM service of this machine on a port, as soon as it answers."""
    address = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    process = subprocess.Popen(
        [sys.executable, "-m", module, *address, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + START_SECONDS
        while not _answers(port):
            assert process.poll() is None and time.monotonic() < until, f"{module} does not answer"
            time.sleep(0.2)
        yield port
    finally:
        # a tracker and a server each have children of their own, which outlive them
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def tuned(runner: RemoteRunner, folder: Path) -> whet.CompiledModule:
    tuning = whet.Tuning(trials=4, runner=runner, database=folder)
    return whet.optimize(network(), example_inputs=(X,), tuning=tuning, progress=False)


def assert_tuned(compiled: whet.CompiledModule) -> None:
    torch.testing.assert_close(compiled(X), network()(X), rtol=1e-3, atol=1e-5)
    report = compiled.report().tuning
    assert report is not None and report.tasks
    assert not any(task.failures for task in report.tasks), [task.failures for task in report.tasks]


@pytest.mark.slow
def test_one_server_measures_what_is_built_here(tmp_path: Path) -> None:
    with serving("tvm.exec.rpc_server", free_port()) as port:
        assert_tuned(tuned(RemoteRunner("127.0.0.1", port), tmp_path))


@pytest.mark.slow
def test_a_tracker_lends_all_its_boards(tmp_path: Path) -> None:
    with serving("tvm.exec.rpc_tracker", free_port()) as tracker:
        register = ("--tracker", f"127.0.0.1:{tracker}", "--key", "board")
        with (
            serving("tvm.exec.rpc_server", free_port(), *register),
            serving("tvm.exec.rpc_server", free_port(), *register),
        ):
            # a server that has just registered is busy for a moment: two are asked for by number
            runner = RemoteRunner("127.0.0.1", tracker, key="board", boards=2)
            until = time.monotonic() + START_SECONDS
            while _free(tracker) < 2:
                assert time.monotonic() < until
                time.sleep(0.2)
            assert runner.parallel == 2
            assert_tuned(tuned(runner, tmp_path))


def _free(tracker: int) -> int:
    from tvm import rpc

    queues = rpc.connect_tracker("127.0.0.1", tracker).summary()["queue_info"]
    return int(queues.get("board", {}).get("free", 0))


def test_a_tracker_that_is_not_there_is_named(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(TuningError, match=str(port)):
        tuned(RemoteRunner("127.0.0.1", port, key="board"), tmp_path)
