"""The latency benchmark: ratios, means, what it says of engines without a result, and what it draws and saves."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks import latency
from benchmarks.comparison import Row, compare, missing_engines, remarks, summarize, table
from benchmarks.engines import ENGINES
from benchmarks.engines.measuring import OUTPUT_FILE
from benchmarks.latency import Settings, measure_model, record, relative_error
from benchmarks.processes import cores_for, run_child


def row(model: str, engine: str, precision: str, milliseconds: float, error: float = 0.0, **more: Any) -> Row:
    own = engine.startswith("whet")
    return Row(model, engine, precision, own, milliseconds=milliseconds, relative_error=error, **more)


def made_up() -> list[Row]:
    rows = [
        row("a", "eager", "f32", 20.0),
        row("a", "openvino", "f32", 10.0),
        row("a", "whet", "f32", 8.0),
        row("a", "openvino-int8", "int8", 3.0, 0.02),
        row("a", "ort-int8", "int8", 1.0, 0.9),
        row("a", "whet-int8", "int8", 6.0, 0.02),
        row("b", "eager", "f32", 30.0),
        row("b", "openvino", "f32", math.nan, math.nan, missing=("openvino",)),
        row("b", "whet", "f32", 60.0),
        row("b", "openvino-int8", "int8", math.nan, math.nan, missing=("openvino", "nncf")),
        row("b", "ort-int8", "int8", math.nan, math.nan, failure="boom"),
        row("b", "whet-int8", "int8", 6.0, 0.02),
    ]
    compare(rows)
    return rows


def test_the_ratio_is_the_best_peers_time_over_ones_own() -> None:
    ratios = {(one.model, one.engine): (one.ratio, one.best_peer) for one in made_up()}
    assert ratios["a", "whet"] == (10 / 8, "openvino")
    assert ratios["b", "whet"] == (0.5, "eager")
    assert ratios["a", "openvino"] == (1.0, "openvino") and ratios["a", "eager"] == (0.5, "openvino")
    assert ratios["a", "whet-int8"] == (0.5, "openvino-int8")
    assert math.isnan(ratios["b", "whet-int8"][0])


def test_latencies_are_compared_with_eager_too() -> None:
    assert [one.ratio_to_eager for one in made_up()][:3] == [1.0, 0.5, 0.4]


def test_an_engine_with_other_outputs_is_a_failure_and_no_peer() -> None:
    wrong = next(one for one in made_up() if one.engine == "ort-int8")
    assert wrong.failure.startswith("its output differs from eager's by 9.0e-01")


def test_without_eager_nothing_is_judged_by_its_output() -> None:
    rows = [row("a", "openvino", "f32", 10.0, math.nan), row("a", "whet", "f32", 5.0, math.nan)]
    compare(rows)
    assert not any(one.failure for one in rows) and rows[1].ratio == 2.0


def test_means_are_geometric_and_by_precision() -> None:
    floats, integers = summarize(made_up())
    assert (floats.engine, floats.precision) == ("whet", "f32")
    assert floats.mean == pytest.approx(math.sqrt(1.25 * 0.5))
    assert integers.mean == pytest.approx(0.5) and integers.without == ("b",)
    assert "geometric mean 0.79 x the best peer over 2 model(s), lowest 0.50 (b)" in str(floats)
    assert str(integers).endswith("; without b")


def test_peers_without_a_result_are_named() -> None:
    rows = made_up()
    assert missing_engines(rows) == {"openvino": ("openvino",), "openvino-int8": ("openvino", "nncf")}
    text = "\n".join(remarks(rows))
    assert "not installed: openvino-int8 (openvino, nncf)" in text
    assert "failed: ort-int8 on b: boom" in text
    output = io.StringIO()
    Console(file=output, width=150).print(table(rows))
    lines = output.getvalue().splitlines()
    assert sum("not installed" in line for line in lines) == 2 and sum("failed" in line for line in lines) == 2
    assert any("whet " in line and "8.00" in line and "1.25" in line and "openvino" in line for line in lines)


def test_a_model_is_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []

    def child(module: str, arguments: list[str], cores: list[int]) -> dict[str, float | None]:
        action, engine, _, folder, *options = arguments
        assert module == "benchmarks.engines" and options == ["--threads", "1", "--seconds", "0.5"]
        calls.append((action, engine))
        if action == "prepare":
            return {"prepare_seconds": 4.0, "size_megabytes": None if engine == "eager" else 7.0}
        if engine == "ort":
            raise RuntimeError("ImportError: broken")
        np.save(Path(folder) / OUTPUT_FILE, np.ones(2, np.float32))
        return {"milliseconds": 2.0 * len(calls), "peak_megabytes": 100.0}

    monkeypatch.setattr(latency, "run_child", child)
    monkeypatch.setattr(ENGINES["ort"], "modules", ())
    monkeypatch.setattr(ENGINES["openvino"], "modules", ("no_such_engine",))
    rows = measure_model("m", ["eager", "ort", "openvino", "whet"], Settings(3, 0.5, [0]), lambda text: None)
    turns = [("measure", "eager"), ("measure", "whet")]
    first = [("measure", "eager"), ("measure", "ort"), ("measure", "whet")]
    assert calls == [("prepare", "eager"), ("prepare", "ort"), ("prepare", "whet"), *first, *turns, *turns]
    eager, ort, openvino, whet = rows
    assert eager.rounds == [8.0, 14.0, 18.0] and eager.milliseconds == 14.0 and math.isnan(eager.size_megabytes)
    assert ort.failure == "ImportError: broken" and openvino.missing == ("no_such_engine",)
    assert whet.size_megabytes == 7.0 and whet.relative_error == 0.0 and whet.best_peer == "eager"
    saved = json.loads(json.dumps(record({"cpu": "some"}, rows), allow_nan=False))
    assert saved["summaries"][0]["geometric_mean"] == pytest.approx(14.0 / 16.0)
    assert [one["engine"] for one in saved["rows"]] == ["eager", "ort", "openvino", "whet"]


def test_outputs_of_other_shapes_do_not_agree() -> None:
    assert relative_error(np.ones(2), np.ones(3)) == math.inf
    assert relative_error(np.array([1.0, 1.1]), np.ones(2)) == pytest.approx(0.1 / math.sqrt(2))


def test_a_child_says_why_it_failed() -> None:
    with pytest.raises(RuntimeError, match=r"usage: python -m benchmarks\.engines"):
        run_child("benchmarks.engines", ["prepare", "no-such-engine", "m", "."], cores_for(1))
    with pytest.raises(ValueError, match="threads were asked for"):
        cores_for(100_000)


def test_unknown_engines_and_models_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--engines", "eager,nobody"], ["--models", "nothing"]):
        with pytest.raises(SystemExit):
            latency.main(arguments)
        assert arguments[1].rpartition(",")[2] in capsys.readouterr().err


def test_results_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plots import plot_latency

    plot_latency(made_up(), {"cpu": "some", "date": "today", "threads": "2"}, tmp_path / "latency.png")
    assert (tmp_path / "latency.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_latency([], {}, tmp_path / "none.png")
