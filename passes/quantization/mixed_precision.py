"""Mixed precision: bits for each layer, as many as a budget of bytes allows or a bound on the error asks for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from whet.errors import PassError
from whet.ir.graph import Graph
from whet.passes.base import Context, Pass, PassResult
from whet.passes.quantization.allocation import Allocation, Option, least_bytes, least_error
from whet.passes.quantization.sensitivity import (
    FLOAT_BITS,
    Quantizer,
    Sensitivity,
    measured_layers,
    quantize_layers,
    sensitivity,
)
from whet.passes.quantization.weights_only import QuantizeWeights


@dataclass(frozen=True)
class MixedPrecision(Pass):
    """Each layer gets the number of bits with which the network loses least, or is smallest, within the budget.

    First the loss of each layer at each precision is measured, alone (`sensitivity`). Losses are taken to add up, as
    independent noise does to first order (Dong et al., ICCV 2019; Zhou et al., AAAI 2018), so that the choice is a
    knapsack with one option a layer, solved exactly by dynamic programming (`allocation`). Then the quantizer does all
    layers at once.

    Args:
        bits: precisions to choose from; 32 stands for a layer as it is.
        size: bytes that the layers may have, as a fraction of what they have now, in (0, 1]: the least loss within it.
        error: what the losses may sum to: the fewest bytes within it. One of `size` and `error` is given.
        metric: "error" (relative squared error of the outputs), "kl" or "evaluate", as in `sensitivity`.
        quantizer: QuantizeWeights or QuantizeStatic with the options to use; its bits are not looked at.
        batches: calibration batches that the outputs are compared on.

    A budget that cannot be met is no error: the smallest graph (or the one with the least loss) is the result, and a
    change "budget missed: ..." says how far it came.

    Raises PassError for impossible options, and as `sensitivity` does.
    """

    bits: tuple[int, ...] = (8, 4)
    size: float | None = None
    error: float | None = None
    metric: str = "error"
    quantizer: Quantizer = field(default_factory=QuantizeWeights)
    batches: int = 8
    must_change: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (self.size is None) == (self.error is None):
            raise PassError("give one budget: size=fraction of the bytes, or error=bound on the loss")
        if self.size is not None and not 0 < self.size <= 1:
            raise PassError(f"size is the fraction of bytes that may be left, in (0, 1], got {self.size}")
        if self.error is not None and not self.error >= 0:
            raise PassError(f"error is a bound on a loss, at least 0, got {self.error}")

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Measure, choose, quantize. Each layer counts as one change, by its bits."""
        if not measured_layers(graph, self.quantizer):
            return PassResult(graph, False)
        table = sensitivity(graph, context, self.quantizer, self.bits, metric=self.metric, batches=self.batches)
        allocation = self.allocate(table)
        chosen = {
            layer: table.of(layer)[index].bits for layer, index in zip(table.layers, allocation.chosen, strict=True)
        }
        changes = Counter(f"layer in {bits} bits" for bits in chosen.values() if bits != FLOAT_BITS)
        if not changes:
            return PassResult(graph, False)
        result = quantize_layers(graph, context, self.quantizer, chosen)
        return PassResult(result, True, dict(changes) | self._missed(table, allocation))

    def allocate(self, table: Sensitivity) -> Allocation:
        """An index into `table.of(layer)` for each of `table.layers`."""
        layers = [[Option(choice.bytes, choice.loss) for choice in table.of(layer)] for layer in table.layers]
        if self.error is not None:
            return least_bytes(layers, self.error)
        assert self.size is not None
        return least_error(layers, self.size * _whole(table))

    def _missed(self, table: Sensitivity, allocation: Allocation) -> dict[str, int]:
        if allocation.met:
            return {}
        if self.error is not None:
            return {f"budget missed: the losses sum to {allocation.error:.3g}, not {self.error:.3g}": 1}
        return {f"budget missed: {allocation.bytes / _whole(table):.3f} of the bytes, not {self.size:.3f}": 1}


def _whole(table: Sensitivity) -> int:
    return sum(table.sizes.values())
