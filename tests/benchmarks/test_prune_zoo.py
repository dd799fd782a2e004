"""The zoo of structured pruning: what it measures of a model, and what it prints."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.models.case import ModelCase
from benchmarks.models.prune_cases import ENCODERS
from benchmarks.models.prune_check import PruneResult, check_pruned
from benchmarks.models.prune_peer import NOT_INSTALLED, PeerResult
from benchmarks.models.small import ResNetCifar
from benchmarks.prune_zoo import Record, print_table
from benchmarks.zoo import choose

CASE = ModelCase("tiny", "test", lambda: ResNetCifar(blocks=1).eval(), lambda: (torch.randn(1, 3, 32, 32),))


def test_a_model_that_prunes_passes_and_says_what_is_left() -> None:
    result = PruneResult(CASE.name, CASE.source)
    check_pruned(CASE, result, ratio=0.5, target="")
    assert result.passed and not result.reason
    assert result.groups == result.pruned == 6
    assert 0.2 < result.parameters < 0.3 and 0.2 < result.flops < 0.3
    assert PruneResult(**asdict(result)) == result


def test_too_little_removed_is_a_failure() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 2), torch.nn.Linear(2, 256)).eval()
    case = ModelCase("wide", "test", lambda: model, lambda: (torch.randn(1, 64),))
    result = PruneResult(case.name, case.source)
    check_pruned(case, result, ratio=0.9, target="")
    assert not result.passed
    assert result.reason == "parameters 0.193, FLOPs 0.150 are left"


def test_the_table_stands_beside_the_peer() -> None:
    left, right = PruneResult("good", "test", True, parameters=0.26), PruneResult("bad", "test", reason="too much")
    left.peer = asdict(PeerResult(True, "", 0.3, 0.25))
    output = io.StringIO()
    print_table([left, right], True, Console(file=output, width=140))
    assert "test: whet 1, torch-pruning 1, of 2" in output.getvalue()
    assert "too much" in output.getvalue() and "0.30" in output.getvalue()
    output = io.StringIO()
    print_table([left], False, Console(file=output, width=140))
    assert f"torch-pruning {NOT_INSTALLED}" in output.getvalue()


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    options = {"ratio": 0.5, "target": "x86", "peer": False}
    Record(tmp_path / "zoo.json", options).add(PruneResult("good", "test", True, parameters=0.26))
    again = Record(tmp_path / "zoo.json", options)
    assert again.results == {"good": PruneResult("good", "test", True, parameters=0.26)}
    again.add(PruneResult("bad", "test", reason="too much"))
    assert list(Record(tmp_path / "zoo.json", options).results) == ["good", "bad"]
    assert not Record(tmp_path / "zoo.json", options | {"ratio": 0.4}).results


def test_names_are_chosen_among_the_cases() -> None:
    cases = {CASE.name: CASE}
    assert choose("tiny", None, lambda: cases) == [CASE]
    with pytest.raises(SystemExit, match="No such models: huge"):
        choose("huge", None, lambda: cases)
    with pytest.raises(SystemExit, match="No such sources: nowhere"):
        choose(None, "nowhere", lambda: cases)


def test_encoders_end_in_a_classifier() -> None:
    assert all(row.model.endswith("Classification") and row.options["num_labels"] == 10 for row in ENCODERS.values())
