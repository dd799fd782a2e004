"""Where candidates run: worker processes of this machine, or of one board each."""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

from whet.backends.tvm.targets import target_description
from whet.backends.tvm.tuning.jobs import EXPECTED, write_job
from whet.backends.tvm.tuning.task import Kernel
from whet.errors import TuningError
from whet.ir.target import Target
from whet.runtime.cpu import physical_cores

START_SECONDS = 120.0
"""Longest time that a worker may take to import TVM, on top of a candidate's own limit."""


class Runner(Protocol):
    """Measures kernels. `parallel` of them may be asked for at once."""

    @property
    def parallel(self) -> int: ...

    def open(self, target: Target, limit: float) -> Self:
        """Get ready to measure kernels for a target, each at most `limit` seconds. Raises TuningError."""
        ...

    def measure(self, kernel: Kernel, task: str, reference: bool = False) -> dict[str, Any]:
        """{"seconds": ...} or {"failure": why}.

        A kernel that is the `reference` of its task says what all others of that task must compute.
        """
        ...

    def close(self) -> None:
        """Let go of processes and boards."""
        ...


class LocalRunner:
    """Worker processes of this machine, one kernel at a time: two at once would disturb each other.

    Args:
        threads: that a kernel runs on; None: the physical cores.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or physical_cores()
        self._settings: dict[str, Any] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._workers: queue.Queue[Worker] = queue.Queue()
        self._count = 0

    @property
    def parallel(self) -> int:
        """Candidates measured at once."""
        return len(self.remotes())

    def remotes(self) -> list[dict[str, Any] | None]:
        """Where each worker's kernels run: None is here."""
        return [None]

    def open(self, target: Target, limit: float) -> Self:
        """See `Runner.open`."""
        self._folder = tempfile.TemporaryDirectory(prefix="whet-tune-", dir=_fast_folder())
        self._settings = {"target": target_description(target), "limit": limit, "link": []}
        for remote in self.remotes():
            self._workers.put(Worker(self.threads, remote))
        return self

    def measure(self, kernel: Kernel, task: str, reference: bool = False) -> dict[str, Any]:
        """See `Runner.measure`."""
        if self._folder is None:
            raise TuningError("the runner is not open")
        worker = self._workers.get()
        try:
            self._count += 1
            folder = Path(self._folder.name) / task / str(self._count)
            settings = self._settings | {
                "outputs": kernel.outputs,
                "weights": kernel.weights,
                "reference": reference,
                "remote": worker.remote,
                "library": str(folder / f"kernel{self._count}.so"),
            }
            write_job(folder, kernel.function, kernel.arguments, settings)
            answer = worker.ask(folder, self._settings["limit"])
            if reference and "failure" not in answer and not (folder.parent / EXPECTED).exists():
                raise TuningError(f"the worker left no results of the default kernel in {folder.parent}")
            return answer
        finally:
            self._workers.put(worker)

    def close(self) -> None:
        """See `Runner.close`."""
        while not self._workers.empty():
            self._workers.get().stop()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


@contextmanager
def opened(runner: Runner | None, target: Target, limit: float) -> Iterator[Runner]:
    """A runner (None: this machine) that is open inside, and closed afterwards whatever happens."""
    runner = (runner or LocalRunner()).open(target, limit)
    try:
        yield runner
    finally:
        runner.close()


class Worker:
    """A process that measures kernels, started again where it died (`whet.backends.tvm.tuning.worker`)."""

    def __init__(self, threads: int, remote: dict[str, Any] | None) -> None:
        self.remote = remote
        self._variables = {"TVM_NUM_THREADS": str(threads), "TVM_BIND_THREADS": "0", "OMP_NUM_THREADS": "1"}
        self._process: subprocess.Popen[str] | None = None

    def ask(self, job: Path, limit: float) -> dict[str, Any]:
        """The answer to a job; a worker that gives none in time is killed and says so."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(f"{job}\n")
            process.stdin.flush()
        except OSError:
            self.stop()
            return {"failure": "the worker died"}
        line = _line(process, limit + START_SECONDS)
        if not line:
            self.stop()
            return {"failure": "the worker died"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "whet.backends.tvm.tuning.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | self._variables,
                # Ctrl-C is for the tuner, which then ends its workers
                start_new_session=True,
            )
        return self._process

    def stop(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process = None


def _line(process: subprocess.Popen[str], seconds: float) -> str:
    """The next line that a process prints; empty where it ends or takes longer."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if ready else ""


def _fast_folder() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
