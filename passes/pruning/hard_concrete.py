"""L0 regularization: a stochastic gate for every element, trained on the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

from whet.passes.pruning.criterion import Criterion, Question, require_positive

TEMPERATURE: Final = 2 / 3
STRETCH: Final = (-0.1, 1.1)
"""β, γ and ζ of the paper: how soft a gate is, and how far beyond [0, 1] it reaches before it is clipped."""

_OPEN_AT_FIRST: Final = 0.9


@dataclass(frozen=True)
class HardConcrete(Criterion):
    """log α of hard-concrete gates z with E[L(w · z)] + penalty · mean P(z ≠ 0) minimized by Adam; w stays as it is.

    z = clip(s · (ζ - γ) + γ, 0, 1), s = σ((log u - log(1 - u) + log α) / β) for uniform u, and
    P(z ≠ 0) = σ(log α - β · log(-γ / ζ)) (Louizos et al., Learning Sparse Neural Networks through L0
    Regularization, ICLR 2018). Gates are open with probability 0.9 at first.

    Args:
        iterations: steps, one batch each.
        learning_rate: of Adam, for log α.
        penalty: λ, what all gates being open costs.
    """

    iterations: int = 200
    learning_rate: float = 0.1
    penalty: float = 10.0

    def score(self, question: Question) -> list[torch.Tensor]:
        require_positive(
            "HardConcrete", iterations=self.iterations, learning_rate=self.learning_rate, penalty=self.penalty
        )
        loss = question.weight_loss()
        generator = question.generator()
        tensors = [weight.tensor.detach().float() for weight in question.weights]
        dtypes = [weight.tensor.dtype for weight in question.weights]
        count = sum(tensor.numel() for tensor in tensors)
        start = math.log(_OPEN_AT_FIRST / (1 - _OPEN_AT_FIRST)) + TEMPERATURE * math.log(-STRETCH[0] / STRETCH[1])
        gates = [torch.full_like(tensor, start, requires_grad=True) for tensor in tensors]
        optimizer = torch.optim.Adam(gates, lr=self.learning_rate)
        for done, batch in enumerate(loss.steps(self.iterations)):
            question.context.progress("L0 gates of the weights", done, self.iterations)
            gated = [
                (tensor * sample(gate, generator)).to(dtype)
                for tensor, gate, dtype in zip(tensors, gates, dtypes, strict=True)
            ]
            expected_open = torch.stack([open_probability(gate).sum() for gate in gates]).sum() / count
            optimizer.zero_grad()
            (loss(gated, batch) + self.penalty * expected_open).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return [gate.detach() for gate in gates]


def sample(log_alpha: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gates in [0, 1], with mass at both ends; differentiable in log α."""
    low, high = STRETCH
    uniform = torch.rand(log_alpha.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    relaxed = torch.sigmoid((torch.logit(uniform) + log_alpha) / TEMPERATURE)
    return (relaxed * (high - low) + low).clamp(0, 1)


def open_probability(log_alpha: torch.Tensor) -> torch.Tensor:
    """P(gate ≠ 0)."""
    low, high = STRETCH
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-low / high))
