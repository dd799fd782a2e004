"""The whole list of the zoo, by name."""

from __future__ import annotations

from benchmarks.models.case import ModelCase
from benchmarks.models.timm_models import timm_cases
from benchmarks.models.torchvision_models import torchvision_cases
from benchmarks.models.trained import trained_cases
from benchmarks.models.transformers_models import transformers_cases


def all_cases() -> dict[str, ModelCase]:
    """Every case by its unique name, in the order in which the zoo runs them.

    Raises:
        ValueError: two cases share a name.
    """
    cases: dict[str, ModelCase] = {}
    for case in (*trained_cases(), *torchvision_cases(), *transformers_cases(), *timm_cases()):
        if case.name in cases:
            raise ValueError(f"two models of the zoo are called {case.name!r}")
        cases[case.name] = case
    return cases
