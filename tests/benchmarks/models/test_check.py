"""How one model is judged."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import whet
from benchmarks.models import check
from benchmarks.models.case import ModelCase
from benchmarks.models.randomize import seeded_build, seeded_normal


class Doubler(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"double": torch.nn.functional.relu(x * 2)}


CASE = ModelCase(
    "sample",
    "trained",
    functools.partial(seeded_build, Doubler),
    lambda: (seeded_normal(2, 3),),
    classifier=True,
)


@pytest.fixture(autouse=True)
def only_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "all_cases", lambda: {"sample": CASE})


def compile_to(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[dict[str, Any]]:
    """Make `whet.optimize` return `answer`; the arguments it is called with."""
    calls: list[dict[str, Any]] = []

    def optimize(model: nn.Module, **options: Any) -> Any:
        calls.append(options)
        return answer

    # Not setattr: reading the present value would import the whole compiler.
    monkeypatch.setitem(vars(whet), "optimize", optimize)
    return calls


def test_a_right_answer_passes_in_numpy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = compile_to(monkeypatch, lambda x: {"double": (x * 2).relu().numpy()})
    result = check.check("sample", "compile", "avx2", "tvm")
    assert result.passed, result.reason
    assert result.reference == "float64"
    assert result.error == 0.0
    assert calls[0]["target"] == "avx2"
    assert calls[0]["passes"] == ()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda x: {"double": (x * 2.001).relu()}, "relative error 5.00e-04"),
        (lambda x: {"double": torch.full_like(x, math.nan)}, "relative error inf"),
        (lambda x: {"double": (x * 2).relu()[:1]}, "shape"),
        (lambda x: {"double": (x * 2).relu(), "more": x}, "2 outputs instead of 1"),
    ],
)
def test_a_wrong_answer_fails_with_its_reason(monkeypatch: pytest.MonkeyPatch, answer: Any, reason: str) -> None:
    compile_to(monkeypatch, answer)
    result = check.check("sample", "compile", "x86", "tvm")
    assert not result.passed
    assert reason in result.reason


def test_what_is_raised_becomes_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_to(monkeypatch, None)
    result = check.check("sample", "compile", "x86", "tvm")
    assert not result.passed
    assert result.reason.startswith("TypeError: ")
    assert "(check.py:" in result.reason


def test_top1_is_compared_for_classifiers_only() -> None:
    ours, reference = torch.tensor([[1.0, 1.0 + 1e-6]]), torch.tensor([[1.0 + 1e-6, 1.0]])
    assert "top-1" in check.compare([ours], [reference], classifier=True)[0]
    assert check.compare([ours], [reference], classifier=False)[0] == ""


def test_integer_outputs_are_compared_exactly() -> None:
    assert check.compare([torch.tensor([1, 2])], [torch.tensor([1, 2])], classifier=False) == ("", 0.0)
    assert "integer" in check.compare([torch.tensor([1, 3])], [torch.tensor([1, 2])], classifier=False)[0]


def test_export_counts_the_operators_before_decomposition() -> None:
    result = check.check("sample", "export", "x86", "tvm")
    assert result.passed, result.reason
    assert result.operators == {"aten.mul.Tensor": 1, "aten.relu.default": 1}


def test_eager_is_compared_with_float64_and_constant_outputs_are_refused() -> None:
    assert check.check("sample", "eager", "", "").passed
    assert "constant" in check.degenerate_output([torch.zeros(3)])


def test_the_reference_falls_back_to_the_dtype_that_a_model_fixes() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.ones(3, 1)

    outputs, dtype = check.reference_outputs(Fixed(), (seeded_normal(2, 3),), {})
    assert dtype == "float32"
    assert outputs[0].shape == (2, 1)
