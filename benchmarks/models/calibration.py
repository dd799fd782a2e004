"""Inputs on which every engine's quantizer observes a model: the same ones for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.models.case import ModelCase
from benchmarks.models.randomize import SEED

COUNT = 8
"""Batches of inputs."""


def calibration_inputs(case: ModelCase, count: int = COUNT) -> list[tuple[Any, ...]]:
    """Positional inputs: the case's own real ones, or the example inputs and seeded variants of them.

    Raises ValueError for a model that takes keywords: quantizers are given positions only.
    """
    if case.example_kwargs():
        raise ValueError(f"{case.name} takes keyword arguments; calibration data has positional ones only")
    if case.calibration is not None:
        return list(case.calibration(count))
    example = case.example_inputs()
    return [example, *(tuple(_variant(value, index) for value in example) for index in range(1, count))]


def _variant(value: Tensor, index: int) -> Tensor:
    """Normals of the same mean and deviation, or the same integers in another order."""
    generator = torch.Generator().manual_seed(SEED + index)
    if value.is_floating_point():
        return torch.randn(value.shape, generator=generator) * value.std() + value.mean()
    order = torch.randperm(value.numel(), generator=generator)
    return value.flatten()[order].reshape(value.shape)
