"""AWQ: weights that read large activations made larger before rounding, so that they lose less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from whet.errors import PassError
from whet.ir.graph import Graph, Operation
from whet.passes.base import Context, Pass, PassResult
from whet.passes.quantization.formats import Format, require_bits, weight_format
from whet.passes.quantization.layerwise import layer_inputs
from whet.passes.quantization.migration import Junction, channel_sizes, junctions, migrate
from whet.passes.quantization.rounding import LayerInputs, restored, row_errors
from whet.passes.quantization.scaling import Weights
from whet.passes.quantization.weights_only import quantize_rows


@dataclass(frozen=True)
class AWQ(Pass):
    """linear(x, W) -> linear(x / s, W · s), with the s that leaves the least error once W · s is quantized.

    s[c] = mean |x[c]|^a, scaled to √(max s · min s) = 1, with a from 0 (nothing) to 1 on a grid: the one with the
    smallest E‖(Q(W · s) / s - W) x‖² over the calibration data (Lin et al., MLSys 2024). A large weight keeps more
    digits within its group's scale, and channels that carry much need them most. The function stays the same up to
    rounding; a QuantizeWeights with the same `bits`, `group_size` and `symmetric` has to follow. Where the division
    goes is as for SmoothQuant; linear layers that read one value share s, by the sum of their errors.

    Args:
        bits: of the weights to come, 2 to 8.
        group_size: inputs that share a scale; None: one scale a row.
        symmetric: whether zero points will be 0.
        grid: how many exponents a are tried above 0.
        insert: insert multiplications where the division folds into nothing; False: leave those layers.
        exclude: patterns (fnmatch) of module paths of linear layers to leave.

    Raises PassError for options out of range, without calibration data, for data that is empty or not finite, for
    layers that it never reached, and for a pattern that fits nothing.
    """

    bits: int = 4
    group_size: int | None = 64
    symmetric: bool = True
    grid: int = 20
    insert: bool = True
    exclude: tuple[str, ...] = ()
    must_change: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_bits(self.bits, "bits")
        if self.grid < 1 or (self.group_size is not None and self.group_size < 1):
            raise PassError(f"grid and group_size must be at least 1, got {self.grid} and {self.group_size}")

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Each value that was rescaled counts as one change, by how that was done."""
        clone = graph.clone()
        found = junctions(clone, self.exclude, self.insert, context, self.name)
        if not found:
            return PassResult(graph, False)
        sizes = channel_sizes(clone, found, context, "mean")
        # all are chosen for the weights as they are, before any of them changes
        chosen = [
            (junction, self._search(junction, sizes[junction.value], inputs))
            for junction, inputs in _inputs(clone, found, context)
        ]
        weights, changes = Weights(), Counter[str]()
        for junction, factors in chosen:
            if factors is not None:
                changes[migrate(clone, weights, junction, factors)] += 1
        if not changes:
            return PassResult(graph, False)
        weights.commit()
        return PassResult(clone, True, changes)

    def _search(self, junction: Junction, size: Tensor, inputs: LayerInputs) -> Tensor | None:
        """The best s, float64 [channels]; None where nothing beats s = 1."""
        tensors = [Weights().get(reader.operand(1)) for reader in junction.readers]
        least = sum(self._error(tensor, torch.ones_like(size), inputs) for tensor in tensors)
        best: Tensor | None = None
        for step in range(1, self.grid + 1):
            factors = junction.even(_factors(size, step / self.grid))
            error = sum(self._error(tensor, factors, inputs) for tensor in tensors)
            if error < least:
                best, least = factors, error
        return best

    def _error(self, weight: Tensor, factors: Tensor, inputs: LayerInputs) -> float:
        form = Format(weight_format(self.bits).dtype, self.bits, self.symmetric)
        columns = weight.shape[1]
        group = self.group_size or columns
        quantized = quantize_rows(weight * factors, form, group)
        point = torch.zeros_like(quantized.scale) if quantized.zero_point is None else quantized.zero_point
        scale, zero_point = (item.repeat_interleave(group, 1)[:, :columns] for item in (quantized.scale, point))
        return float(row_errors(weight, restored(quantized.codes, scale, zero_point) / factors, inputs).sum())


def _factors(size: Tensor, exponent: float) -> Tensor:
    """mean |x|^exponent with √(max · min) = 1; channels that are always 0 count as the smallest that is not."""
    positive = size[size > 0]
    if not len(positive):
        return torch.ones_like(size)
    powers = torch.where(size > 0, size, positive.min()).pow(exponent)
    return powers / torch.sqrt(powers.max() * powers.min())


def _inputs(graph: Graph, found: list[Junction], context: Context) -> Iterator[tuple[Junction, LayerInputs]]:
    by_layer: dict[Operation, Junction] = {item.readers[0]: item for item in found}
    for layer, inputs in layer_inputs(graph, list(by_layer), context):
        yield by_layer[layer], inputs
