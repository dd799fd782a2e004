"""The steps (scales) of fake quantization while weights are trained: following the weights, or learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from whet.ir.graph import Operation, Value
from whet.ir.ops.fake_quantize import codes
from whet.passes.quantization.fake import FakeQuantization
from whet.passes.recovery.rule import TrainingRule
from whet.passes.recovery.trainable import TrainableGraph
from whet.passes.weights import evaluate_weight

_SMALLEST: Final = 1e-12
"""A step stays positive: a channel of zeros must still divide, and a gradient may go too far."""


class LearnedSteps(TrainingRule):
    """Scales of weights and activations are trained as everything is (LSQ, Esser et al., ICLR 2020)."""

    def __init__(self, fake: FakeQuantization) -> None:
        self.learned = tuple(value.name for value in fake.scales)

    def after_step(self, model: TrainableGraph) -> None:
        """Steps stay positive."""
        for name, tensor in model.named_tensors():
            if name in self.learned:
                tensor.clamp_min_(_SMALLEST)


@dataclass(frozen=True)
class _Weight:
    """One fake_quantize of a weight."""

    constant: str
    mask: Tensor | None
    scale: str
    high: int
    ratio: Tensor

    def largest(self, tensor: Tensor, per_row: bool) -> Tensor:
        kept = tensor if self.mask is None else tensor.masked_fill(self.mask.logical_not(), 0)
        sizes = kept.abs()
        return sizes.flatten(1).amax(1) if per_row else sizes.amax()


class FollowingSteps(TrainingRule):
    """scale = ratio · max |w| / (largest code), one a row or one in all; the ratio is that of the beginning."""

    def __init__(self, fake: FakeQuantization) -> None:
        self.initial = {item.operand(1).name: item.operand(1).constant for item in fake.weights}
        self.weights = [_described(item) for item in fake.weights]

    def begin(self, model: TrainableGraph) -> None:
        """Scales become tensors that are kept with the weights."""
        model.statistics |= {name: scale.clone() for name, scale in self.initial.items() if scale is not None}

    def after_step(self, model: TrainableGraph) -> None:
        """Scales follow the weights that are trained."""
        trained = dict(model.named_tensors())
        for item in self.weights:
            if item.constant in trained:
                scale = model.statistics[item.scale]
                largest = item.largest(trained[item.constant], scale.dim() > 0)
                scale.copy_((largest / item.high * item.ratio).clamp_min(_SMALLEST))


def _described(fake: Operation) -> _Weight:
    source: Value = fake.operand(0)
    mask = None
    form = source.producer
    if form is not None and form.name == "masked":
        source, mask = form.operand(0), form.operand(1).constant
    tensor, scale = evaluate_weight(source), fake.operand(1).constant
    assert tensor is not None and scale is not None
    _, high = codes(fake.attributes["dtype"], fake.attributes["bounds"])
    plain = _Weight(source.name, mask, fake.operand(1).name, high, torch.ones(()))
    full = plain.largest(tensor, scale.dim() > 0) / high
    ratio = torch.where(full > 0, scale / full.clamp_min(_SMALLEST), torch.ones(()))
    return _Weight(source.name, mask, fake.operand(1).name, high, ratio)
