"""The engines of the benchmarks: the catalogue, what they are given, and two of them on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.engines import ENGINES, Inputs, Job
from benchmarks.engines.measuring import OUTPUT_FILE, first_output, measure, prepare
from benchmarks.models.calibration import COUNT, calibration_inputs
from benchmarks.models.case import ModelCase
from tests.benchmarks.tiny import CASE, model, picture
from whet.runtime.executor import shared_executor
from whet.runtime.library import load_runtime


def threads() -> int:
    """What compiled code of this process runs on already: it cannot be another number."""
    load_runtime()
    return shared_executor().threads


def nothing() -> ModelCase:
    raise AssertionError("the case was asked for, and PyTorch with it")


# Only what runs in PyTorch needs the case to run.
@pytest.mark.parametrize(("name", "find", "limit"), [("eager", lambda: CASE, 0.0), ("whet", nothing, 1e-4)])
def test_an_engine_runs_what_it_prepared(
    name: str, find: Callable[[], ModelCase], limit: float, tmp_path: Path
) -> None:
    engine = ENGINES[name]()
    prepared = prepare(engine, Job(lambda: CASE, tmp_path, threads()))
    assert (prepared["size_megabytes"] is None) == (name == "eager")
    measured = measure(engine, Job(find, tmp_path, threads()), seconds=0.02)
    assert measured["milliseconds"] > 0 and measured["runs"] >= 1 and measured["peak_megabytes"] > 10
    expected = model()(*picture()).numpy()
    output = np.load(tmp_path / OUTPUT_FILE)
    assert np.linalg.norm(output - expected) <= limit * np.linalg.norm(expected)


def test_names_say_whose_an_engine_is_and_in_which_precision() -> None:
    assert {engine.precision for engine in ENGINES.values() if engine.own} == {"f32", "bf16", "int8"}
    for name, engine in ENGINES.items():
        assert engine.own == name.startswith("whet"), name
        assert [part for part in ("bf16", "int8") if part in name] == ([engine.precision] * (engine.precision != "f32"))


def test_what_an_engine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ENGINES["ort"], "modules", ("torch", "no_such_engine"))
    assert ENGINES["ort"].missing() == ("no_such_engine",)
    assert ENGINES["eager"].missing() == ()


def test_inputs_survive_the_file(tmp_path: Path) -> None:
    inputs = Inputs((np.arange(3), np.ones((1, 2), np.float32)), {"mask": np.array([True])})
    inputs.save(tmp_path / "inputs.npz")
    again = Inputs.load(tmp_path / "inputs.npz")
    assert [value.tolist() for value in again.args] == [[0, 1, 2], [[1.0, 1.0]]]
    assert again.kwargs["mask"].tolist() == [True]
    assert list(again.by_name(["x", "y", "mask"])) == ["x", "y", "mask"]


def test_inputs_that_are_no_tensors_are_refused() -> None:
    case = ModelCase("nested", "test", model, lambda: ((torch.ones(1),),))
    with pytest.raises(TypeError, match="nested takes a tuple"):
        Inputs.of(case)


def test_calibration_inputs_differ_and_are_the_same_every_time() -> None:
    first, second = calibration_inputs(CASE), calibration_inputs(CASE)
    assert len(first) == COUNT
    assert all(torch.equal(one[0], two[0]) for one, two in zip(first, second, strict=True))
    assert not any(torch.equal(first[0][0], other[0]) for other in first[1:])
    tokens = ModelCase("tokens", "test", model, lambda: (torch.arange(9),))
    assert all(sorted(batch[0].tolist()) == list(range(9)) for batch in calibration_inputs(tokens))


def test_calibration_inputs_of_the_case_itself_come_first() -> None:
    case = ModelCase("real", "test", model, picture, calibration=lambda count: [(torch.full((1,), count),)])
    assert [batch[0].tolist() for batch in calibration_inputs(case, 5)] == [[5]]


def test_the_first_output_of_any_structure() -> None:
    structures = ([torch.ones(2)], {"a": np.ones(2)}, (({"x": [torch.ones(2, dtype=torch.bfloat16)]}, None),))
    for outputs in structures:
        assert first_output(outputs).dtype == np.float32 and first_output(outputs).tolist() == [1.0, 1.0]
