"""Cross-layer equalization: channels of like ranges, without a change of what the network computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final

import torch
from torch import Tensor

from whet.errors import PassError
from whet.ir.builder import Builder
from whet.ir.graph import Graph, Operation, Value
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import DeadCodeElimination
from whet.passes.fold_batch_norm import FoldBatchNorm
from whet.passes.quantization.scaling import (
    Source,
    Weights,
    balanced,
    find_source,
    input_ranges,
    output_ranges,
    per_source,
    readers_of,
    scale_reader,
    scale_source,
)
from whet.passes.rewrite.pattern import MatchFailure
from whet.passes.selection import select_layers
from whet.passes.weights import LAYERS, input_dim, rounded

KEEP: Final = "keep"
CHANNEL: Final = "channel"
RELU: Final = "relu"
_CLAMPS: Final = (KEEP, CHANNEL, RELU)


@dataclass(frozen=True)
class EqualizeCrossLayer(Pass):
    """layer₂(f(layer₁(x))) -> layer₂'(f(layer₁'(x))) with W₁' = S⁻¹ W₁, b₁' = S⁻¹ b₁, W₂' = W₂ S, S = diag(s).

    With r₁[c] = max |W₁| of what makes channel c and r₂[c] = max |W₂| of what reads it, s = √(r₁ / r₂) makes both
    √(r₁ r₂), so that one scale fits all channels (Nagel et al., ICCV 2019, "Data-free quantization", equations 8-11).
    Pairs are visited until none changes: in a chain (expand, depthwise, project) each layer belongs to two. The
    result is the same function up to rounding: f may be anything that commutes with positive factors a channel: relu,
    leaky relu, pooling, means over positions, padding by zeros, transposes, flattening, or nothing. All readers of a
    value share its factors; a value that something else than layers reads has none.

    relu6, clamp(x, 0, 6), commutes only if its bound follows: clamp(x, 0, 6) = s · clamp(x / s, 0, 6 / s). With
    `clamps` "channel" it becomes minimum(relu(x), 6 / s) with a constant a channel: the same function at the price of
    one more element-wise operation. With "keep" such pairs are left alone. With "relu" it becomes a relu, as in the
    paper, which is another function wherever the bound was reached.

    Batch norms are folded first.

    Args:
        clamps: "channel", "keep" or "relu".
        rounds: most visits of all pairs.
        tolerance: pairs whose factors are all within this of 1 are done.
        exclude: patterns (fnmatch) of module paths of layers that keep their weights.

    Raises PassError for another value of `clamps`, and for a pattern that fits nothing.
    """

    clamps: str = CHANNEL
    rounds: int = 100
    tolerance: float = 1e-3
    exclude: tuple[str, ...] = ()
    must_change: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.clamps not in _CLAMPS:
            raise PassError(f"clamps is one of {', '.join(_CLAMPS)}, got {self.clamps!r}")
        if self.rounds < 1 or not self.tolerance > 0:
            raise PassError(f"rounds must be at least 1 and tolerance positive, got {self.rounds}, {self.tolerance}")

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Each value whose channels were equalized counts as one change."""
        clone = FoldBatchNorm(expand=False).run(graph, context).graph.clone()
        weights, pairs = Weights(), self._pairs(clone, context)
        for _ in range(self.rounds):
            if not max([pair.equalize(weights) for pair in pairs], default=0) > self.tolerance:
                break
        changed = [pair for pair in pairs if _distance(pair.factors) > self.tolerance]
        if not changed:
            return PassResult(graph, False)
        weights.commit()
        for pair in changed:
            for clamp, dim, spread in pair.source.clamps:
                _replace_clamp(clone, clamp, dim, pair.factors.repeat_interleave(pair.source.spread // spread), self)
        result = DeadCodeElimination().run(clone, context).graph
        return PassResult(result, True, {"value equalized": len(changed)})

    def _pairs(self, graph: Graph, context: Context) -> list[_Pair]:
        layers = set(select_layers(graph, LAYERS, self.exclude))
        pairs = []
        for value, readers in readers_of(graph, layers).items():
            try:
                pairs.append(self._pair(graph, value, readers, layers))
            except MatchFailure as decline:
                if context.tracer is not None:
                    context.tracer.decline(self.name, readers[0], decline.reason, decline.values)
        return pairs

    def _pair(self, graph: Graph, value: Value, readers: list[Operation], layers: set[Operation]) -> _Pair:
        dims = {input_dim(reader) for reader in readers}
        if len(dims) > 1:
            raise MatchFailure("its readers have their channels in different dimensions", value)
        source = find_source(value, dims.pop(), readers, graph.returns)
        if source.operation not in layers:
            raise MatchFailure(f"is made by {source.operation.name}, which is no layer or is excluded", value)
        if source.clamps and self.clamps == KEEP:
            raise MatchFailure('the clamp has an upper bound: clamps="channel" or "relu" lets factors pass', value)
        for reader in readers:
            Weights().get(reader.operand(1))
        return _Pair(source, readers)


@dataclass(eq=False)
class _Pair:
    """What makes a value, what reads it, and what its channels were divided by so far."""

    source: Source
    readers: list[Operation]
    factors: Tensor = field(default_factory=lambda: torch.ones((), dtype=torch.float64))

    def equalize(self, weights: Weights) -> float:
        """Divide the channels by √(r₁ / r₂); how far that was from 1."""
        layer = self.source.operation
        made = output_ranges(layer, weights.get(layer.operand(1)))
        read = torch.stack([input_ranges(reader, weights.get(reader.operand(1))) for reader in self.readers])
        factors = balanced(made, per_source(read.amax(0), self.source.spread))
        scale_source(weights, layer, 1 / factors)
        for reader in self.readers:
            scale_reader(weights, reader, factors.repeat_interleave(self.source.spread))
        self.factors = self.factors * factors
        return _distance(factors)


def _distance(factors: Tensor) -> float:
    return float((factors - 1).abs().max())


def _replace_clamp(graph: Graph, clamp: Operation, dim: int, factors: Tensor, options: EqualizeCrossLayer) -> None:
    builder = Builder(graph, before=clamp)
    positive = builder.relu(clamp.operand(0))
    if options.clamps == CHANNEL:
        shape = (-1, *([1] * (clamp.result.type.rank - 1 - dim)))
        bound = clamp.attributes["maximum"] / factors
        positive = builder.minimum(positive, builder.constant(rounded(bound, clamp.result).reshape(shape)))
    graph.replace_value(clamp.result, positive)
    graph.erase(clamp)
