"""Recurrent layers in integers: the product with the previous output, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch

from whet.ir.graph import Graph, Operation, Value
from whet.ir.types import DType
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import DeadCodeElimination
from whet.passes.quantization.parameters import quantize_weight, symmetric_per_channel
from whet.passes.recurrent_projection import HoistRecurrentProjections, sums_biases, weight_slot
from whet.passes.rewrite.pattern import MatchFailure
from whet.passes.rewrite.rewriter import Rewriter
from whet.passes.selection import select_layers
from whet.passes.weights import evaluate_weight, key_of

INTEGER_FORMS: Final = {"lstm": "lstm_integer", "gru": "gru_integer"}
"""Recurrent layer -> its form with integer products."""

_SCALE = 1 / 127
"""Of an output, which is a mean of values of tanh: within -1 and 1, if it was so at first."""


@dataclass(frozen=True)
class QuantizeRecurrent(Pass):
    """lstm and gru with the product R h in integers: R i8 symmetric per row, h i8 with the fixed scale 1/127.

    The output of a step, which is within [-1, 1], becomes codes q, and R h is f32(Σ q · w) · (scale · scale of the
    row); gates and states stay f32. The product with the inputs becomes a `linear` of its own
    (`HoistRecurrentProjections`), which is left to the pass that quantizes linear layers. No calibration is needed; a
    first state beyond [-1, 1], which no layer itself gives, saturates.

    Args:
        exclude: patterns (fnmatch) of module paths that stay in floating point.

    Layers with a projection (whose outputs have no bound), with weights that are no constants and of other types than
    f32 are left as they are. Raises PassError for a pattern that fits nothing.
    """

    exclude: tuple[str, ...] = ()
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Hoist and rewrite. Each layer counts as one change."""
        hoisted = HoistRecurrentProjections().run(graph, context).graph.clone()
        changes = quantize_recurrent(hoisted, select_layers(hoisted, INTEGER_FORMS, self.exclude), context)
        if not changes:
            return PassResult(graph, False)
        return PassResult(DeadCodeElimination().run(hoisted, context).graph, True, changes)


def quantize_recurrent(graph: Graph, layers: Sequence[Operation], context: Context) -> Counter[str]:
    """Give `layers` of `graph`, which is edited in place, integer products; how many of which kind took them.

    `layers` are called as in `INTEGER_FORMS`, and have no input projection any more (`HoistRecurrentProjections`). The
    tracer of `context` is told why one declines.
    """
    rewriter = Rewriter(graph)
    changes: Counter[str] = Counter()
    for layer in layers:
        rewriter.begin(layer)
        try:
            _replace(rewriter, layer)
        except MatchFailure as failure:
            rewriter.abandon()
            if context.tracer is not None:
                context.tracer.decline("QuantizeRecurrent", layer, failure.reason, failure.values)
            continue
        changes[f"{layer.name} quantized"] += 1
    rewriter.commit()
    return changes


def _replace(rewriter: Rewriter, layer: Operation) -> None:
    """The integer form in the place of `layer`. Raises MatchFailure where it has none."""
    slot = weight_slot(layer)
    states, (_, weight, _, recurrent_bias, *more) = layer.operands[1:slot], _padded(layer.operands[slot:], 4)
    if layer.operands[slot] is not None:
        raise MatchFailure("its inputs are not multiplied before (HoistRecurrentProjections)", layer.operands[slot])
    if any(item is not None for item in more):
        raise MatchFailure("has a projection, whose outputs have no bound", *more)
    if layer.results[0].type.dtype is not DType.F32:
        raise MatchFailure("only f32 is quantized", layer.results[0])
    assert weight is not None
    matrix = evaluate_weight(weight)
    if matrix is None:
        raise MatchFailure("the recurrent weight must be a constant", weight)
    parameters = symmetric_per_channel(matrix)
    scale = torch.tensor(_SCALE, dtype=torch.float32)
    key = key_of(weight)
    operands = [
        _with_bias(rewriter, layer, recurrent_bias),
        *states,
        rewriter.constant(quantize_weight(matrix, parameters), f"{key}.i8" if key else ""),
        rewriter.constant((scale.double() * parameters.scale.double()).float(), f"{key}.multiplier" if key else ""),
        rewriter.constant(scale),
    ]
    if recurrent_bias is not None and not sums_biases(layer):
        operands.append(recurrent_bias)
    rewriter.replace(layer, rewriter.emit(INTEGER_FORMS[layer.name], operands, {}, layer.results[0].name).results)


def _padded(operands: Sequence[Value | None], count: int) -> list[Value | None]:
    return [*operands, *[None] * (count - len(operands))]


def _with_bias(rewriter: Rewriter, layer: Operation, bias: Value | None) -> Value:
    """x, and the recurrent bias where it may be added ahead of time."""
    x = layer.operand(0)
    if bias is None or not sums_biases(layer):
        return x
    total: Value = rewriter.add(x, bias)
    return total
