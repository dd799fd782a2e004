"""A model that compiles in a second, for tests of what measures models."""

from __future__ import annotations

import torch

from benchmarks.models.case import ModelCase

SIDE = 8
CHANNELS = 16


def model() -> torch.nn.Module:
    """Two convolutions and a linear layer, the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, CHANNELS, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(CHANNELS, CHANNELS, 1),
            torch.nn.Flatten(),
            torch.nn.Linear(CHANNELS * SIDE**2, 10),
        )
    return layers.eval().requires_grad_(False)


def picture() -> tuple[torch.Tensor]:
    """One input, the same at every call."""
    return (torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)),)


CASE = ModelCase("tiny", "test", model, picture)
MULTIPLY_ADDS = SIDE**2 * (3 * CHANNELS * 9 + CHANNELS**2) + CHANNELS * SIDE**2 * 10
