"""Logarithmic quantization: weights that are powers of two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from whet.errors import PassError
from whet.ir.graph import Graph, Operation
from whet.passes.base import Context, Pass, PassResult
from whet.passes.fold_batch_norm import FoldBatchNorm
from whet.passes.quantization.codebook import share_weights, shareable_layers
from whet.passes.quantization.formats import require_bits

# The exponent of the smallest normal number of f32.
_SMALLEST_EXPONENT: Final = -126


@dataclass(frozen=True)
class QuantizeLogarithmic(Pass):
    """Each weight becomes 0 or ± 2ᵉ, whichever is nearest.

    With b bits there are 2ᵇ⁻¹ - 1 exponents, e_max = ⌊log₂(4/3 · max |w|)⌋ and those below it, per weight tensor; what
    is nearer to 0 than to the smallest power becomes 0 (Miyashita et al., 2016; INQ: Zhou et al., ICLR 2017). Products
    with such weights are shifts. In the graph: `lookup` of a codebook of powers, `masked` where the weight was pruned.
    Batch norms are folded first.

    Args:
        bits: 2 to 8.
        exclude: patterns (fnmatch) of module paths that are left alone.

    Raises PassError for impossible bits and for a pattern that fits nothing.
    """

    bits: int = 4
    exclude: tuple[str, ...] = ()
    must_change: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_bits(self.bits, "bits")

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Fold, round, rewrite. Each operation with such weights counts as one change."""
        folded = FoldBatchNorm(expand=False).run(graph, context).graph.clone()
        layers = shareable_layers(folded, self.exclude)
        return share_weights(graph, folded, layers, self._centres, context)

    def _centres(self, layer: Operation, kept: Tensor) -> Tensor:
        return powers_of_two(float(kept.abs().max()), 2 ** (self.bits - 1) - 1)


def powers_of_two(largest: float, count: int) -> Tensor:
    """0 and ± 2ᵉ for `count` exponents, the highest the one nearest to `largest`; ascending, float64.

    Fewer where they would fall below the normal numbers of f32; 0 alone for a `largest` of 0. Raises PassError where
    that is not finite.
    """
    if not math.isfinite(largest):
        raise PassError("powers of two stand for finite weights: this weight has NaN or infinite elements")
    if largest == 0:
        return torch.zeros(1, dtype=torch.float64)
    highest = math.floor(math.log2(largest * 4 / 3))
    lowest = max(highest - count + 1, _SMALLEST_EXPONENT)
    powers = torch.tensor([2.0**exponent for exponent in range(lowest, highest + 1)], dtype=torch.float64)
    return torch.cat([-powers.flip(0), powers.new_zeros(1), powers])
