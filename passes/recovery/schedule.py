"""Learning rates over the course of training, and the optimizers that follow them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import nn

_RISE: Final = 0.2
"""Part of a one-cycle schedule in which the rate rises."""


def _constant(progress: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter, SGDR, ICLR 2017)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def _one_cycle(progress: float) -> float:
    """Up from 0 to 1, then down to 0, both linear (Smith, "super-convergence", 2018)."""
    return progress / _RISE if progress < _RISE else (1 - progress) / (1 - _RISE)


SCHEDULES: Final[Mapping[str, Callable[[float], float]]] = {
    "cosine": _cosine,
    "constant": _constant,
    "one-cycle": _one_cycle,
}
"""Name -> (part of all steps that is done, 0 to 1) -> factor of the learning rate."""


def _sgd(groups: list[dict[str, Any]], rate: float, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, rate, momentum=momentum, nesterov=momentum > 0)


def _adamw(groups: list[dict[str, Any]], rate: float, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, rate, betas=(momentum, 0.999))


OPTIMIZERS: Final[Mapping[str, tuple[Callable[[list[dict[str, Any]], float, float], torch.optim.Optimizer], float]]] = {
    "sgd": (_sgd, 0.01),
    "adamw": (_adamw, 2e-4),
}
"""Name -> its maker from parameter groups, learning rate and momentum, and the learning rate to begin with."""


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], rate: float | None, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer `name`. Norms, biases and codebooks do not decay: it would only shrink what they scale."""
    make, usual = OPTIMIZERS[name]
    parameters = list(parameters)
    groups = [
        {"params": [item for item in parameters if item.dim() > 1], "weight_decay": weight_decay},
        {"params": [item for item in parameters if item.dim() <= 1], "weight_decay": 0.0},
    ]
    rate = usual if rate is None else rate
    return make([{**group, "initial_lr": rate} for group in groups if group["params"]], rate, momentum)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """The learning rate of the next step, as a factor of the one to begin with."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
