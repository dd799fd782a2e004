"""Starts are measured from the making of the process, and what goes wrong stands in the row."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import whet
from benchmarks.footprint.__main__ import measure, start
from benchmarks.footprint.installs import Requirements, install, megabytes
from benchmarks.footprint.preparing import HERE, Candidate
from benchmarks.footprint.rows import Row, table
from benchmarks.processes import cores_for

CORES = cores_for(1)


def answering(*outputs: float) -> tuple[str, ...]:
    """A command that says that it was started, and gives these numbers."""
    result = {"ready_seconds": 0.25, "first_result_seconds": 0.5, "peak_megabytes": 10.0, "output": outputs}
    return sys.executable, "-c", f"print({json.dumps(result)!r})"


def test_python_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "input.npy", np.arange(10.0))
    result = start((sys.executable, "-I", str(HERE / "start.py"), "python", str(tmp_path), "1"), CORES)
    assert result["output"] == list(range(8))
    assert 0 < result["ready_seconds"] <= result["first_result_seconds"] < 60
    assert 5 < result["peak_megabytes"] < 200


def test_whet(tmp_path: Path) -> None:
    model, x = torch.nn.Linear(4, 9).eval(), torch.rand(1, 4)
    whet.optimize(model, "x86", example_inputs=(x,)).save(tmp_path / "model.whet")
    np.save(tmp_path / "input.npy", x.numpy())
    # Not isolated: here whet may be found by a path in the environment.
    script = str(HERE / "start.py")
    code = f"import runpy, sys; sys.path[:0] = {sys.path!r}; runpy.run_path({script!r}, run_name='__main__')"
    result = start((sys.executable, "-c", code, "whet", str(tmp_path), "1"), CORES)
    np.testing.assert_allclose(result["output"], model(x).detach()[0, :8], atol=1e-5)


def test_failures_are_results() -> None:
    good, wrong = Row("good", "1", model_megabytes=1.0), Row("wrong", "1", model_megabytes=1.0)
    ended, missing = Row("ended", "1"), Row("missing", "1", failure="not installed")
    candidates = [
        Candidate(good, answering(1.0, 2.0)),
        Candidate(wrong, answering(1.0, 2.5)),
        Candidate(ended, (sys.executable, "-c", "raise ValueError('no such model')")),
        Candidate(missing, ()),
    ]
    measure(candidates, 3, CORES)
    assert (good.ready_seconds, good.first_result_seconds, good.peak_megabytes) == (0.25, 0.5, 10.0)
    assert len(good.rounds) == 3 and not good.failure
    assert wrong.failure == "scores [1.0, 2.5] in place of [1.0, 2.0]"
    assert ended.failure == "ValueError: no such model"
    assert missing.failure == "not installed" and missing.ready_seconds is None
    shown = Console(file=io.StringIO(), width=200)
    shown.print(table([good, missing], "here"))
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "0.25 s" in text and "0.50 s" in text and "10 MB" in text


@pytest.mark.slow
def test_an_environment_of_its_own(tmp_path: Path) -> None:
    installed = install(Requirements(("typing_extensions",)), tmp_path)
    assert installed.packages == 1
    assert 0 < installed.download_megabytes < installed.installed_megabytes < 1
    assert installed.installed_megabytes == pytest.approx(megabytes(installed.site))
    with pytest.raises(RuntimeError, match="ERROR"):
        install(Requirements(("typing_extensions==0.0.0.dev0",)), tmp_path / "other")
