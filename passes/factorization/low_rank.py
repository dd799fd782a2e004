"""What a factorization of a layer's weight is: the ranks that it may have, and what takes the layer's place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from whet.ir.graph import Operation, Value
from whet.passes.rewrite import Rewriter
from whet.passes.weights import key_of

Rank = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Unit:
    """Weights that are factored together, with the layers that read them and the tensors that they stand for.

    Mostly one weight of one layer; several layers where a weight is tied, several weights where they share a factor.
    """

    weights: tuple[Value, ...]
    layers: tuple[Operation, ...]
    tensors: tuple[torch.Tensor, ...]

    @property
    def tensor(self) -> torch.Tensor:
        """The one weight, in float64."""
        (tensor,) = self.tensors
        return tensor.double()

    @property
    def elements(self) -> int:
        """Parameters of the weights as they are."""
        return sum(tensor.numel() for tensor in self.tensors)

    def key(self, role: str, index: int = 0) -> str:
        """The name of a factor in the weights file: "fc.weight" -> "fc.weight.u"; "" where the weight has none."""
        key = key_of(self.weights[index])
        return f"{key}.{role}" if key else ""


@dataclass(frozen=True)
class Factor:
    """One small weight and its name in the weights file."""

    tensor: torch.Tensor
    key: str


class LowRank(ABC):
    """A unit's weights as products, at any rank.

    Args:
        unit: what to factor.
        root: L [groups, n, n] with L Lᵀ = E[x xᵀ] of what the weight, as matrices [groups, m, n], is multiplied with:
            errors are measured as ‖(W - W̃) L‖. Forms that are no matrix product do without.

    Raises MatchFailure for layers that have no such form.
    """

    def __init__(self, unit: Unit, root: torch.Tensor | None = None) -> None:
        self.unit = unit
        self.root = root

    @property
    @abstractmethod
    def chain(self) -> Sequence[Rank]:
        """Ranks to choose from, each with more parameters, and losing no more, than the one before."""

    @abstractmethod
    def limited(self, rank: int) -> Rank:
        """The rank that `rank=` asks for, where it is that large."""

    @abstractmethod
    def parameters(self, rank: Rank) -> int:
        """Elements of all factors."""

    @abstractmethod
    def lost(self, rank: Rank) -> float:
        """At most this share of the weights' energy ‖W‖² is lost."""

    @abstractmethod
    def factors(self, rank: Rank) -> dict[str, Factor]:
        """The factors, in float64, by role."""

    @abstractmethod
    def build(self, rewriter: Rewriter, layer: Operation, factors: Mapping[str, Value]) -> Value:
        """What takes the place of one of the layers, which is the rewriter's root."""


def balanced(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """left [..., m, r] and right [..., r, n] with the same product, column k and row k of equal norm.

    After an SVD that is √S on both sides: neither factor needs a wider range when it is quantized.
    """
    ratio = right.norm(dim=-1) / left.norm(dim=-2)
    scale = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, torch.ones_like(ratio)).sqrt()
    return left * scale[..., None, :], right / scale[..., :, None]
