"""Moving the sizes of activation channels into the weights that read them: what SmoothQuant and AWQ share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.ir.graph import Graph, Operation, Value
from whet.passes.base import Context
from whet.passes.quantization.calibration import watch
from whet.passes.quantization.scaling import (
    Source,
    Weights,
    find_source,
    insert_scaled,
    per_source,
    readers_of,
    scale_reader,
    scale_source,
)
from whet.passes.rewrite.pattern import MatchFailure
from whet.passes.selection import select_layers

FOLDED = "factors folded"
INSERTED = "multiplication inserted"


@dataclass(frozen=True, eq=False)
class Junction:
    """A value, the linear layers that read it, and where its channels' factors can go.

    `source` None: nothing before the value can take the factors in, and a multiplication has to be inserted.
    """

    value: Value
    readers: tuple[Operation, ...]
    source: Source | None

    @property
    def spread(self) -> int:
        return 1 if self.source is None else self.source.spread

    def even(self, factors: Tensor) -> Tensor:
        """The factors with those of channels that the source makes as one set to the largest of them."""
        return per_source(factors, self.spread).repeat_interleave(self.spread)


def junctions(graph: Graph, exclude: Sequence[str], insert: bool, context: Context, name: str) -> list[Junction]:
    """Every value that selected linear layers with constant weights read, and may be rescaled; the rest is traced.

    Raises PassError for a pattern of `exclude` that fits no linear layer.
    """
    layers = {layer for layer in select_layers(graph, ("linear",), exclude) if _editable(layer, context, name)}
    found = []
    for value, readers in readers_of(graph, layers).items():
        try:
            source = _source(graph, value, readers)
        except MatchFailure as decline:
            source = None
            if not insert:
                _trace(context, name, readers[0], decline)
                continue
        found.append(Junction(value, tuple(readers), source))
    return found


def migrate(graph: Graph, weights: Weights, junction: Junction, factors: Tensor) -> str:
    """Divide the channels of the value by `factors` and let its readers make up for it; how it was done.

    The readers compute what they did, up to rounding: (x / factors) (W · factors)ᵀ.
    """
    for reader in junction.readers:
        scale_reader(weights, reader, factors)
    if junction.source is None:
        insert_scaled(graph, junction.value, 1 / factors, junction.readers)
        return INSERTED
    scale_source(weights, junction.source.operation, 1 / per_source(factors, junction.source.spread))
    return FOLDED


def channel_sizes(graph: Graph, found: Sequence[Junction], context: Context, reduce: str) -> dict[Value, Tensor]:
    """max ("amax") or mean ("mean") of |x| for each channel of each value, float64, over the calibration data.

    Raises PassError as `calibration.watch` does.
    """
    totals: dict[Value, Tensor] = {}
    rows: dict[Value, int] = {}

    def visit(value: Value, tensor: Tensor) -> None:
        flat = tensor.reshape(-1, tensor.shape[-1]).abs().double()
        now = flat.amax(0) if reduce == "amax" else flat.sum(0)
        before = totals.get(value)
        rows[value] = rows.get(value, 0) + len(flat)
        totals[value] = now if before is None else torch.maximum(before, now) if reduce == "amax" else before + now

    watch(graph, [item.value for item in found], context, visit, "observing the sizes of channels")
    return totals if reduce == "amax" else {value: total / rows[value] for value, total in totals.items()}


def _source(graph: Graph, value: Value, readers: Sequence[Operation]) -> Source:
    source = find_source(value, value.type.rank - 1, readers, graph.returns)
    if source.clamps:
        raise MatchFailure("a clamp with an upper bound does not commute with factors", value)
    return source


def _editable(layer: Operation, context: Context, name: str) -> bool:
    try:
        Weights().get(layer.operand(1))
    except MatchFailure as decline:
        _trace(context, name, layer, decline)
        return False
    return True


def _trace(context: Context, name: str, operation: Operation, decline: MatchFailure) -> None:
    if context.tracer is not None:
        context.tracer.decline(name, operation, decline.reason, decline.values)
