"""Where candidates run: worker processes of this machine, or of one board each."""

from __future__ import annotations

import itertools
import json
import os
import queue
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

from whet.backends.tvm.targets import target_description
from whet.backends.tvm.tuning.jobs import EXPECTED, write_job
from whet.backends.tvm.tuning.task import Kernel
from whet.errors import TuningError
from whet.ir.target import Target
from whet.remote import Device
from whet.runtime.cpu import physical_cores

START_SECONDS = 120.0
"""Longest time that a worker may take to import TVM, on top of a candidate's own limit."""


class Runner(Protocol):
    """Measures kernels. `parallel` of them may be asked for at once."""

    @property
    def parallel(self) -> int: ...

    @property
    def lost(self) -> Mapping[str, str]:
        """Boards that are no longer used, and why."""
        ...

    def open(self, target: Target, limit: float) -> Self:
        """Get ready to measure kernels for a target, each at most `limit` seconds. Raises TuningError."""
        ...

    def measure(self, kernel: Kernel, task: str, reference: bool = False, insist: bool = False) -> dict[str, Any]:
        """{"seconds": ...} or {"failure": why}, with "lost": board where that is why.

        A kernel that is the `reference` of its task says what all others of that task must compute. `insist` measures
        again, elsewhere, where a board was lost. Raises TuningError where nothing is left to measure on.
        """
        ...

    def close(self) -> None:
        """Let go of processes and boards."""
        ...


class Jobs:
    """Worker processes that build (and, on this machine, measure) kernels, and the folder of what they do.

    Args:
        target: that kernels are built for.
        limit: seconds that a kernel may take.
        workers: processes.
        threads: of each.
        link: the command that links a library for a board; empty: kernels are measured here.
    """

    def __init__(self, target: Target, limit: float, workers: int, threads: int, link: Sequence[str] = ()) -> None:
        self._limit = limit
        self._settings = {"target": target_description(target), "limit": limit, "link": list(link)}
        self._folder = tempfile.TemporaryDirectory(prefix="whet-tune-", dir=_fast_folder())
        self._workers: queue.Queue[Worker] = queue.Queue()
        for _ in range(workers):
            self._workers.put(Worker(threads))
        self._numbers = itertools.count()

    @contextmanager
    def built(self, kernel: Kernel, task: str, reference: bool = False) -> Iterator[tuple[dict[str, Any], Path]]:
        """A worker's answer about a kernel, and the job's folder, which lasts as long as the block."""
        folder = Path(self._folder.name) / task / str(next(self._numbers))
        settings = self._settings | {"outputs": kernel.outputs, "weights": kernel.weights, "reference": reference}
        write_job(folder, kernel.function, kernel.arguments, settings)
        try:
            worker = self._workers.get()
            try:
                answer = worker.ask(folder, self._limit)
            finally:
                self._workers.put(worker)
            yield answer, folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End the workers."""
        while not self._workers.empty():
            self._workers.get().stop()
        self._folder.cleanup()


class LocalRunner:
    """This machine, one kernel at a time: two at once would disturb each other.

    Args:
        threads: that a kernel runs on; None: the physical cores.
    """

    parallel = 1

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or physical_cores()
        self.lost: Mapping[str, str] = {}
        self._jobs: Jobs | None = None

    def open(self, target: Target, limit: float) -> Self:
        """See `Runner.open`."""
        self._jobs = Jobs(target, limit, workers=1, threads=self.threads)
        return self

    def measure(self, kernel: Kernel, task: str, reference: bool = False, insist: bool = False) -> dict[str, Any]:
        """See `Runner.measure`."""
        if self._jobs is None:
            raise TuningError("the runner is not open")
        with self._jobs.built(kernel, task, reference) as (answer, folder):
            if reference and "failure" not in answer and not (folder.parent / EXPECTED).exists():
                raise TuningError(f"the worker left no results of the default kernel in {folder.parent}")
            return answer

    def close(self) -> None:
        """See `Runner.close`."""
        if self._jobs is not None:
            self._jobs.close()
            self._jobs = None


@contextmanager
def opened(given: Any, target: Target, limit: float) -> Iterator[Runner]:
    """A runner that is open inside, and closed afterwards whatever happens.

    Args:
        given: a runner, a `whet.Device` or several of them; None: this machine.
    """
    runner = as_runner(given).open(target, limit)
    try:
        yield runner
    finally:
        runner.close()


def as_runner(given: Any) -> Runner:
    """What measures on the devices that a user gave. Raises TuningError for what is none."""
    from whet.backends.tvm.tuning.remote import RemoteRunner

    if given is None:
        return LocalRunner()
    if hasattr(given, "measure"):
        runner: Runner = given
        return runner
    devices = [given] if isinstance(given, Device) else list(given)
    if not all(isinstance(item, Device) for item in devices):
        raise TuningError(f"Tuning: runner is a whet.Device, or several, not {given!r}")
    return RemoteRunner(devices)


class Worker:
    """A process that measures kernels, started again where it died (`whet.backends.tvm.tuning.worker`)."""

    def __init__(self, threads: int) -> None:
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
