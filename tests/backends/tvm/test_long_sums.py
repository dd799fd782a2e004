"""Sums of many terms keep their accuracy: they are taken in two stages (numerics: R3, T1)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import whet


class GroupNorm(nn.Module):
    """One group: every picture's mean and variance are over all of its 200 704 elements."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class Statistics(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.sum((1, 2, 3)), x.mean((2, 3)), x.var((0, 2, 3)), x.square().sum((0, 3, 1))


def leaves(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (outputs,) if isinstance(outputs, torch.Tensor) else outputs


@pytest.mark.parametrize("model", [GroupNorm(), Statistics()], ids=lambda item: type(item).__name__)
def test_sums_of_many_terms(model: nn.Module) -> None:
    x = torch.randn(1, 64, 56, 56, generator=torch.Generator().manual_seed(0)) * 3 + 5
    compiled = whet.optimize(model.eval(), example_inputs=(x,), progress=False)
    found, wanted = compiled(x), model.double()(x.double())
    for out, ref in zip(
        *((item,) if isinstance(item, torch.Tensor) else item for item in (found, wanted)), strict=True
    ):
        assert float((out.double() - ref).norm() / ref.norm()) < 2e-6
