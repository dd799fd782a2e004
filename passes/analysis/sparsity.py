"""How many of the weights are zero, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from whet.ir.graph import Graph
from whet.passes.pruning.masks import find_weights
from whet.passes.weights import key_of


@dataclass(frozen=True)
class WeightSparsity:
    """One weight: the module path of its first layer, its name in the weights file, its elements and zeros."""

    module: str
    key: str
    shape: tuple[int, ...]
    elements: int
    zeros: int

    @property
    def share(self) -> float:
        """Share of zeros, 0 for a weight without elements."""
        return self.zeros / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class Sparsity:
    """All weights of a graph, tied ones once. Printing it gives a table."""

    weights: tuple[WeightSparsity, ...]

    @property
    def elements(self) -> int:
        return sum(weight.elements for weight in self.weights)

    @property
    def zeros(self) -> int:
        return sum(weight.zeros for weight in self.weights)

    @property
    def share(self) -> float:
        """Share of zeros among all elements."""
        return self.zeros / self.elements if self.elements else 0.0

    def __str__(self) -> str:
        names = [weight.key or weight.module or "?" for weight in self.weights]
        width = max(map(len, [*names, "all"]))
        rows = [_row(name, weight, width) for name, weight in zip(names, self.weights, strict=True)]
        total = WeightSparsity("", "", (), self.elements, self.zeros)
        return "\n".join([*rows, _row("all", total, width)])


def _row(name: str, weight: WeightSparsity, width: int) -> str:
    shape = "x".join(map(str, weight.shape))
    return f"{name:{width}}  {shape:>16}  {weight.zeros:>10} of {weight.elements:>10} zero  {weight.share:7.2%}"


def sparsity(graph: Graph) -> Sparsity:
    """Zeros in the weights of linear, convolutional, recurrent and embedding layers, masks applied."""
    rows = []
    for weight in find_weights(graph):
        zeros = int((weight.tensor == 0).sum())
        key = key_of(weight.value)
        rows.append(WeightSparsity(weight.module, key, tuple(weight.tensor.shape), weight.tensor.numel(), zeros))
    return Sparsity(tuple(rows))
