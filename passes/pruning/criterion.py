"""What a criterion of unstructured pruning is, and what it is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from whet.errors import PassError
from whet.ir.graph import Graph
from whet.passes.base import Context
from whet.passes.pruning.gradients import Loss, WeightLoss
from whet.passes.pruning.masks import Weight


@dataclass(frozen=True)
class Question:
    """What a criterion is asked about: the worth of `weights`, which are some of those of `graph`."""

    graph: Graph
    weights: Sequence[Weight]
    context: Context
    loss: Loss | None = None

    def weight_loss(self) -> WeightLoss:
        """The loss as a function of the weights. Raises PassError without train data."""
        return WeightLoss(self.graph, self.weights, self.context, self.loss)

    def generator(self) -> torch.Generator:
        """Random numbers that depend on the context's seed alone."""
        return torch.Generator().manual_seed(self.context.seed)


class Criterion(ABC):
    """Elements of small worth go first. Subclasses are frozen dataclasses: their fields are its options."""

    @abstractmethod
    def score(self, question: Question) -> list[torch.Tensor]:
        """One float tensor a weight, of its shape; larger is worth more."""


def require_positive(owner: str, **numbers: float) -> None:
    """Guard of options. Raises PassError."""
    for name, number in numbers.items():
        if not number > 0:
            raise PassError(f"{owner}'s {name} must be positive, got {number}")
