"""A candidate that crashes, hangs, fails to build or computes something else costs itself alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm.script import from_source

from whet.backends.tvm.targets import target_description
from whet.backends.tvm.tuning.jobs import write_job
from whet.backends.tvm.tuning.runner import LocalRunner
from whet.backends.tvm.tuning.task import Kernel
from whet.ir.target import get_target
from whet.runtime.safetensors import RawTensor

ADD = """
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(X: T.Buffer((8,), "{dtype}"), Y: T.Buffer((8,), "{dtype}")) -> None:
    for i in range(8):
        with T.sblock("add"):
            vi = T.axis.spatial(8, i)
            Y[vi] = X[vi] + T.cast({number}, "{dtype}")
"""


def add(number: float, dtype: str = "float32") -> Kernel:
    """Y = X + number."""
    short = {"float32": "f32", "int32": "i32"}[dtype]
    module = tvm.IRModule({"main": from_source(ADD.format(number=number, dtype=dtype))})
    return Kernel(tvm.ir.save_json(module), [RawTensor(short, np.arange(8, dtype=dtype))], [], [(short, (8,))])


@pytest.fixture(scope="module")
def runner() -> LocalRunner:  # type: ignore[misc]
    with_target = LocalRunner(threads=1).open(get_target("x86"), limit=60.0)
    yield with_target  # type: ignore[misc]
    with_target.close()


def test_kernels_are_timed_and_compared_with_the_reference(runner: LocalRunner) -> None:
    assert runner.measure(add(1), "float", reference=True)["seconds"] > 0
    assert runner.measure(add(1.00001), "float")["seconds"] > 0
    failure = runner.measure(add(1.1), "float")["failure"]
    assert failure.startswith("Wrong: output 0 differs from the default kernel's by 0.1")


def test_integers_are_compared_bit_for_bit(runner: LocalRunner) -> None:
    runner.measure(add(1, "int32"), "integer", reference=True)
    assert runner.measure(add(2, "int32"), "integer")["failure"] == (
        "Wrong: output 0 has 8 other integers than the default kernel's"
    )


def test_what_does_not_build_says_why_and_the_worker_goes_on(runner: LocalRunner) -> None:
    broken = Kernel("{}", [], [], [])
    assert runner.measure(broken, "broken", reference=True)["failure"]
    assert runner.measure(add(1), "after", reference=True)["seconds"] > 0


def serve(action: str, folder: Path, limit: float) -> dict[str, str]:
    """The answer of a worker whose children do `action`."""
    write_job(folder / "job", "{}", [], {"limit": limit, "target": target_description(get_target("x86"))})
    code = (
        "import os, signal, sys, time; import whet.backends.tvm.tuning.worker as w; "
        f"w.execute = lambda job: {action}; w.serve(sys.stdin, sys.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=f"{folder / 'job'}\n", capture_output=True, text=True, check=True
    )
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def test_a_crash_is_a_failure(tmp_path: Path) -> None:
    answer = serve("os.kill(os.getpid(), signal.SIGSEGV)", tmp_path, 30.0)
    assert answer == {"failure": f"died of signal {int(signal.SIGSEGV)}"}


def test_a_hang_is_killed(tmp_path: Path) -> None:
    assert serve("time.sleep(60)", tmp_path, 0.5) == {"failure": "took longer than 0.5 s"}


def test_a_dead_worker_is_started_again() -> None:
    runner = LocalRunner(threads=1).open(get_target("x86"), limit=60.0)
    try:
        assert "seconds" in runner.measure(add(1), "first", reference=True)
        jobs = runner._jobs
        assert jobs is not None
        worker = jobs._workers.get()
        assert worker._process is not None
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait()
        jobs._workers.put(worker)
        assert "seconds" in runner.measure(add(1), "second", reference=True)
    finally:
        runner.close()
