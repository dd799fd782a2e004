"""AdaRound: rounding up or down, learned for the least error of the layer's output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from whet.errors import PassError
from whet.passes.quantization.rounding import (
    LayerInputs,
    better_rows,
    grouped_rows,
    require_inputs,
    round_nearest,
)

# the rectified sigmoid h(V) = clamp(σ(V) (ζ - γ) + γ, 0, 1) reaches 0 and 1 with gradients left (Louizos et al. 2018)
_ZETA: Final = 1.1
_GAMMA: Final = -0.1


@dataclass(frozen=True)
class AdaRound:
    """Each weight becomes floor(w / scale) + h(V) with a learned V, h -> 0 or 1 (Nagel et al., ICML 2020).

    Minimizes, for each row of the weight, E((W - W̃) x)² / E((W - W_nearest) x)² + strength · mean(1 - |2 h(V) - 1|^β)
    by Adam, with h(V) = clamp(1.2 σ(V) - 0.1, 0, 1) started at the fraction of w / scale, and β annealed from `first`
    to `last` (cosine) after a warm start without the regularizer. The expectation is exact over the calibration rows:
    it needs their second moments alone, so a step costs no pass over the data. A row that comes out worse than rounded
    to nearest, by that measure, is rounded to nearest.

    Args:
        steps: of Adam.
        rate: its learning rate.
        strength: of the regularizer, against an error that is 1 when rounded to nearest.
        warm: the share of steps before the regularizer starts, in [0, 1).
        first: β at the start: free to move.
        last: β at the end: drawn to 0 or 1.

    Raises PassError for options out of range, and for inputs that are missing.
    """

    steps: int = 500
    rate: float = 0.02
    strength: float = 3.0
    warm: float = 0.2
    first: float = 20.0
    last: float = 2.0
    needs_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.rate > 0 or not 0 <= self.warm < 1 or not self.strength > 0:
            raise PassError(f"AdaRound takes steps >= 1, rate > 0, strength > 0 and warm in [0, 1), got {self}")

    def round(
        self, weight: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, inputs: LayerInputs | None
    ) -> Tensor:
        """Integers of the weight's shape, i32; see `Rounding.round`."""
        given = require_inputs(inputs, "AdaRound")
        nearest = round_nearest(weight, scale, zero_point, low, high)
        rows = grouped_rows(weight.detach().double(), given)
        scales = grouped_rows(scale.double().expand(weight.shape), given)
        zeros = grouped_rows(zero_point.double().expand(weight.shape), given)
        floor = torch.floor(rows / scales)
        up = self._learn(rows, floor + zeros, scales, zeros, low, high, given)
        codes = (floor + zeros + up).clamp(low, high).reshape(weight.shape).to(torch.int32)
        return better_rows(weight, codes, nearest, scale, zero_point, given)

    def _learn(
        self, rows: Tensor, floor: Tensor, scales: Tensor, zeros: Tensor, low: int, high: int, inputs: LayerInputs
    ) -> Tensor:
        """1 where to round up, 0 elsewhere: [groups, rows, columns].

        The error of a weight that neither rounding brings into [low, high] is not its choice: codes are clamped.
        """
        gram, scale = inputs.gram, scales.float()
        # what is pruned stays at its zero point, which its floor is
        free = (rows != 0).float()
        below = (low - floor).float().clamp_min(0)
        above = (high - floor).float().clamp_max(1)
        target = (rows / scales + zeros - floor).float()
        unit = _unit(target, below, above, scale, gram)
        start = ((target - _GAMMA) / (_ZETA - _GAMMA)).clamp(1e-4, 1 - 1e-4)
        logits = torch.log(start / (1 - start)).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=self.rate)
        with torch.enable_grad():
            for step in range(self.steps):
                soft = _rectified(logits) * free
                error = (torch.minimum(torch.maximum(soft, below), above) - target) * scale
                loss = (((error @ gram) * error).sum(2) / unit).sum()
                beta = self._beta(step)
                if beta is not None:
                    loss = loss + self.strength * (1 - (2 * soft - 1).abs().pow(beta)).mean(2).sum()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return (_rectified(logits.detach()) * free >= 0.5).double()

    def _beta(self, step: int) -> float | None:
        """The exponent of the regularizer, None during the warm start."""
        begin = self.warm * self.steps
        if step < begin:
            return None
        done = (step - begin) / max(self.steps - begin, 1)
        return self.last + 0.5 * (self.first - self.last) * (1 + math.cos(math.pi * done))


def _rectified(logits: Tensor) -> Tensor:
    return (torch.sigmoid(logits) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


def _unit(target: Tensor, below: Tensor, above: Tensor, scale: Tensor, gram: Tensor) -> Tensor:
    """The squared error of each row when rounded to nearest, [groups, rows]; 1 where there is none."""
    nearest = torch.minimum(torch.maximum(torch.round(target), below), above)
    error = (nearest - target) * scale
    squares = ((error @ gram) * error).sum(2)
    return torch.where(squares > 0, squares, torch.ones_like(squares))
