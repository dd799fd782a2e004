"""What an element of a weight is worth: criteria of unstructured pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from whet.errors import PassError
from whet.passes.data import TrainingBatch
from whet.passes.pruning.criterion import Criterion, Question, require_positive
from whet.passes.pruning.gradients import WeightLoss
from whet.passes.pruning.hard_concrete import HardConcrete


@dataclass(frozen=True)
class Magnitude(Criterion):
    """|w| (Han et al., Learning both Weights and Connections, NeurIPS 2015)."""

    def score(self, question: Question) -> list[torch.Tensor]:
        return [weight.tensor.abs().float() for weight in question.weights]


@dataclass(frozen=True)
class Lamp(Criterion):
    """w² / Σ v² over the elements v of the same weight with |v| >= |w| (Lee et al., LAMP, ICLR 2021).

    Scores of different weights compare: made for scope="global".
    """

    def score(self, question: Question) -> list[torch.Tensor]:
        return [_lamp(weight.tensor) for weight in question.weights]


def _lamp(tensor: torch.Tensor) -> torch.Tensor:
    squares, order = tensor.double().square().flatten().sort(descending=True)
    scores = torch.empty_like(squares)
    scores[order] = squares / squares.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return scores.reshape(tensor.shape).float()


@dataclass(frozen=True)
class Random(Criterion):
    """Uniform numbers from the context's seed: what every criterion has to beat."""

    def score(self, question: Question) -> list[torch.Tensor]:
        generator = question.generator()
        return [torch.rand(weight.tensor.shape, generator=generator) for weight in question.weights]


@dataclass(frozen=True)
class Gradient(Criterion):
    """|∂L/∂w| / ‖∇L‖, the gradient averaged over the train data, its norm over all weights that are ranked.

    Args:
        batches: how many batches to average over; None: all.
    """

    batches: int | None = None

    def score(self, question: Question) -> list[torch.Tensor]:
        gradients = average_gradients(question, self.batches)
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        return [gradient.abs() / (norm or 1.0) for gradient in gradients]


@dataclass(frozen=True)
class Taylor(Criterion):
    """|w · ∂L/∂w|: to first order, how the loss changes without w (Molchanov et al., ICLR 2017; SNIP, ICLR 2019).

    Args:
        batches: how many batches to average the gradient over; None: all.
    """

    batches: int | None = None

    def score(self, question: Question) -> list[torch.Tensor]:
        gradients = average_gradients(question, self.batches)
        pairs = zip(question.weights, gradients, strict=True)
        return [(weight.tensor.float() * gradient).abs() for weight, gradient in pairs]


@dataclass(frozen=True)
class Movement(Criterion):
    """-Σ_t w_t · ∂L/∂w_t along steps of gradient descent: large where w moves away from zero (Sanh et al., 2020).

    Args:
        iterations: steps, one batch each.
        learning_rate: of plain gradient descent; what is trained is dropped again.
    """

    iterations: int = 100
    learning_rate: float = 1e-2

    def score(self, question: Question) -> list[torch.Tensor]:
        require_positive("Movement", iterations=self.iterations, learning_rate=self.learning_rate)
        loss = question.weight_loss()
        tensors = [weight.tensor.detach().float() for weight in question.weights]
        scores = [torch.zeros_like(tensor) for tensor in tensors]
        for done, batch in enumerate(loss.steps(self.iterations)):
            question.context.progress("movement of the weights", done, self.iterations)
            for index, gradient in enumerate(gradients_of(loss, tensors, [batch], question)):
                scores[index] -= tensors[index] * gradient
                tensors[index] = tensors[index] - self.learning_rate * gradient
        return scores


def average_gradients(question: Question, batches: int | None = None) -> list[torch.Tensor]:
    """Mean gradient over the batches, in f32. Raises PassError without data, and where a gradient is not finite."""
    if batches is not None:
        require_positive("criterion", batches=batches)
    loss = question.weight_loss()
    tensors = [weight.tensor.detach().float() for weight in question.weights]
    return gradients_of(loss, tensors, loss.batches if batches is None else loss.steps(batches), question)


def gradients_of(
    loss: WeightLoss, tensors: Sequence[torch.Tensor], batches: Iterable[TrainingBatch], question: Question
) -> list[torch.Tensor]:
    """Mean over `batches` of the gradient at `tensors` (f32), one a weight.

    It is zero for elements that are pruned already, and for weights that the loss does not depend on.
    """
    totals = [torch.zeros_like(tensor) for tensor in tensors]
    count = 0
    for batch in batches:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        typed = [leaf.to(weight.tensor.dtype) for leaf, weight in zip(leaves, question.weights, strict=True)]
        found = torch.autograd.grad(loss(typed, batch), leaves, allow_unused=True)
        for total, gradient in zip(totals, found, strict=True):
            if gradient is not None:
                total += gradient
        count += 1
    if not all(bool(torch.isfinite(total).all()) for total in totals):
        raise PassError("a gradient on the train data is not finite: there is nothing to rank by")
    pairs = zip(totals, question.weights, strict=True)
    return [(total / count).masked_fill(weight.pruned, 0) for total, weight in pairs]


CRITERIA: Final[dict[str, Callable[[], Criterion]]] = {
    "gradient": Gradient,
    "l0": HardConcrete,
    "lamp": Lamp,
    "magnitude": Magnitude,
    "movement": Movement,
    "random": Random,
    "taylor": Taylor,
}
"""Criteria by the name that passes take, each with its default options."""


def find_criterion(criterion: str | Criterion) -> Criterion:
    """A criterion by name, or itself. Raises PassError, with the names that there are, for an unknown one."""
    if isinstance(criterion, Criterion):
        return criterion
    if criterion not in CRITERIA:
        raise PassError(f"there is no pruning criterion {criterion!r}; known are {', '.join(sorted(CRITERIA))}")
    return CRITERIA[criterion]()
