"""The roofline benchmark: work and time of each kernel of a tiny model, beside peaks that are made up or measured."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.engines.base import Inputs
from benchmarks.engines.whet_engines import BUNDLE, Whet, WhetInt8
from benchmarks.kernel_work import work_of
from benchmarks.peaks import Peaks, measure_peaks
from benchmarks.roofline import roofline, table
from tests.benchmarks.tiny import CASE, MULTIPLY_ADDS
from whet.runtime.profiling import KernelTimes, time_kernels

PEAKS = Peaks(1, {"f32": 1e11, "bf16": 2e11, "int8": 4e11}, {1 << 16: 5e10, 1 << 20: 8e10, 1 << 24: 1e10})


@pytest.mark.parametrize(("engine", "precision"), [(Whet(), "f32"), (WhetInt8(), "int8")])
def test_every_kernel_has_a_row(engine: Whet, precision: str, tmp_path: Path) -> None:
    compiled = engine.compile(CASE)
    compiled.save(tmp_path / BUNDLE)
    works = work_of(compiled)
    contractions = [work for work in works if any("conv" in name or "linear" in name for name in work.operations)]
    assert {work.precision for work in contractions} == {precision} and len(contractions) == 3
    assert 2 * MULTIPLY_ADDS <= sum(work.flops for work in contractions) <= 2.1 * MULTIPLY_ADDS
    inputs = Inputs.of(CASE)
    times = time_kernels(tmp_path / BUNDLE, inputs.args, inputs.kwargs, None, 0.02)
    kernels = {item.name: (item.operations, item.schedule) for item in compiled.report().kernels}
    result = roofline(("tiny", "whet"), works, kernels, times, PEAKS)
    assert sorted(row.kernel for row in result.rows) == sorted(kernels)
    assert sum(row.calls for row in result.rows) == len(works)
    assert sum(row.share for row in result.rows) == pytest.approx(1.0, abs=1e-2)
    assert sum(row.milliseconds for row in result.rows) == pytest.approx(result.kernel_milliseconds, rel=1e-2)
    assert [row.milliseconds for row in result.rows] == sorted((row.milliseconds for row in result.rows), reverse=True)
    output = io.StringIO()
    Console(file=output, width=170).print(table(result, 2))
    assert f"{len(result.rows) - 2} others" in output.getvalue()


def test_a_roofline_takes_the_larger_of_computing_and_moving() -> None:
    assert PEAKS.seconds("f32", 1e9, 1e6) == (1e9 / 1e11, False)
    assert PEAKS.seconds("int8", 4e8, 1e9) == (1e9 / 1e10, True)
    assert PEAKS.bandwidth(10) == 8e10 and PEAKS.bandwidth(1 << 21) == 1e10 and PEAKS.bandwidth(1 << 30) == 1e10


def test_kernels_that_are_not_the_graphs_are_refused() -> None:
    times = KernelTimes(("add_0",), (1e-6,), 1e-5)
    with pytest.raises(RuntimeError, match="called 1 kernels; 0 were expected"):
        roofline(("m", "whet"), [], {"add_0": (("add",), "stages")}, times, PEAKS)


def test_this_machine_has_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    peaks = measure_peaks(1, 0.01)
    assert list(peaks.operations) == ["f32", "bf16", "int8"] and min(peaks.operations.values()) > 1e8
    assert min(peaks.copies.values()) > 1e6
    assert Peaks.of({"threads": 1, "operations": dict(peaks.operations), "copies": dict(peaks.copies)}) == peaks
