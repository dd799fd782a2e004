"""Random weights are seeded and leave nothing constant."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.models.randomize import (
    seeded_build,
    seeded_normal,
    seeded_tokens,
    strengthen,
)


class Sample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.full((8,), 1e-6))


def test_nothing_stays_constant_and_the_same_is_built_twice() -> None:
    state = torch.random.get_rng_state()
    first, second = seeded_build(Sample).state_dict(), seeded_build(Sample).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        assert tensor.numel() == 1 or float(tensor.std()) > 0, name
    assert float(first["norm.running_var"].min()) > 0.5
    assert 0.05 <= float(first["scale"].min()) <= float(first["scale"].max()) <= 0.15


def test_the_module_is_in_eval_mode_and_frozen() -> None:
    module = seeded_build(Sample)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_weak_matrices_are_strengthened_and_others_left() -> None:
    weak, strong = nn.Linear(64, 64), nn.Linear(64, 64)
    with torch.no_grad():
        weak.weight.normal_(0, 0.02)
        kept = strong.weight.normal_(0, 0.125).clone()
    strengthen(nn.Sequential(weak, strong))
    assert abs(float(weak.weight.detach().std()) - 0.125) < 1e-3
    assert torch.equal(strong.weight, kept)


def test_inputs_are_seeded() -> None:
    assert torch.equal(seeded_normal(2, 3), seeded_normal(2, 3))
    tokens = seeded_tokens(100, 4, 50)
    assert tokens.dtype == torch.int64
    assert int(tokens.min()) >= 4
    assert int(tokens.max()) < 100
