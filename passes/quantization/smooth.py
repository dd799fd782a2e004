"""SmoothQuant: outlier channels of activations made smaller, and the weights that read them larger."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from whet.errors import PassError
from whet.ir.graph import Graph
from whet.passes.base import Context, Pass, PassResult
from whet.passes.quantization.migration import Junction, channel_sizes, junctions, migrate
from whet.passes.quantization.scaling import Weights, input_ranges


@dataclass(frozen=True)
class SmoothQuant(Pass):
    """linear(x, W) -> linear(x / s, W · s) with s[c] = max |x[c]|^alpha / max |W[:, c]|^(1 - alpha).

    One range for all channels of an activation wastes its codes on a few outlier channels, while weights have a range
    a row: so part of the outliers moves into the weights (Xiao et al., ICML 2023, equation 4). The same function up to
    rounding. Linear layers that read one value (query, key, value) share its s, by the largest of their weights. The
    division folds into what makes x where that is a normalization or a layer, or something behind it that commutes with
    positive factors, and x has no other reader; else, with `insert`, it becomes a multiplication before the layers
    (pre-norm transformers need none; behind a post-norm or a gelu there is no other place).

    Args:
        alpha: how much moves, in [0, 1]: 0.5 balances; up to 0.75 for activations with stronger outliers.
        insert: insert multiplications where the division folds into nothing; False: leave those layers.
        exclude: patterns (fnmatch) of module paths of linear layers to leave.

    Raises PassError for alpha outside of [0, 1], without calibration data, for data that is empty or not finite, for
    layers that it never reached, and for a pattern that fits nothing.
    """

    alpha: float = 0.5
    insert: bool = True
    exclude: tuple[str, ...] = ()
    must_change: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise PassError(f"alpha must be in [0, 1], got {self.alpha}")

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Each value that was rescaled counts as one change, by how that was done."""
        clone = graph.clone()
        found = junctions(clone, self.exclude, self.insert, context, self.name)
        if not found:
            return PassResult(graph, False)
        sizes = channel_sizes(clone, found, context, "amax")
        weights, changes = Weights(), Counter[str]()
        for junction in found:
            factors = self._factors(junction, sizes[junction.value], weights)
            changes[migrate(clone, weights, junction, factors)] += 1
        weights.commit()
        return PassResult(clone, True, changes)

    def _factors(self, junction: Junction, size: Tensor, weights: Weights) -> Tensor:
        """s, float64 [channels]; 1 for channels that are always 0, on either side."""
        read = torch.stack([input_ranges(reader, weights.get(reader.operand(1))) for reader in junction.readers])
        largest = read.amax(0)
        factors = size.pow(self.alpha) / largest.pow(1 - self.alpha)
        plain = torch.isfinite(factors) & (factors > 0) & (size > 0) & (largest > 0)
        return junction.even(torch.where(plain, factors, torch.ones_like(factors)))
