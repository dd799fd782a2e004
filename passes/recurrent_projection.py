"""Taking the product with the inputs out of recurrent layers, which leaves it one large linear layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from whet.ir.graph import Graph, Location, Operation, Value
from whet.ir.ops import CATALOGUE
from whet.ir.ops.recurrent import Recurrent
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import DeadCodeElimination
from whet.passes.rewrite.rewriter import Rewriter
from whet.passes.weights import evaluate_weight, key_of

LAYERS: Final = frozenset(name for name, definition in CATALOGUE.items() if isinstance(definition, Recurrent))
"""The recurrent layers of floating-point graphs."""


@dataclass(frozen=True)
class HoistRecurrentProjections(Pass):
    """lstm(x, h, c, W, R, b, r)  ->  lstm(linear(x, W, b + r), h, c, none, R); likewise gru and rnn.

    Nothing of W x_t + b depends on the step before: for all steps at once it is one large product (Appleyard et al.
    2016), an ordinary `linear` that every other pass knows how to quantize, factorize or prune. Its module path is that
    of its weight ("lstm.weight_ih_l0"). A GRU keeps r, which its reset gate multiplies.
    """

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Each layer counts as one change; the graph itself comes back where there is none."""
        clone = graph.clone()
        rewriter = Rewriter(clone)
        layers = [operation for operation in clone.operations if _has_projection(operation)]
        if not layers:
            return PassResult(graph, False)
        for layer in layers:
            _hoist(rewriter, layer)
        rewriter.commit()
        result = DeadCodeElimination().run(clone, context).graph
        return PassResult(result, True, {"input projection hoisted": len(layers)})


def weight_slot(layer: Operation) -> int:
    """The operand of a recurrent layer that multiplies its inputs; recurrent weight and biases follow."""
    definition = layer.definition
    assert isinstance(definition, Recurrent)
    return 1 + definition.states


def _has_projection(operation: Operation) -> bool:
    return operation.name in LAYERS and operation.operands[weight_slot(operation)] is not None


def _hoist(rewriter: Rewriter, layer: Operation) -> None:
    slot = weight_slot(layer)
    rewriter.begin(layer)
    bias, recurrent_bias = ([*layer.operands, None, None][place] for place in (slot + 2, slot + 3))
    if sums_biases(layer) and recurrent_bias is not None:
        bias, recurrent_bias = _sum(rewriter, bias, recurrent_bias), None
    product = rewriter.emit("linear", [layer.operand(0), layer.operand(slot), bias], {}, "projected")
    product.location = _location(layer, layer.operand(slot))
    states, rest = layer.operands[1:slot], layer.operands[slot + 4 :]
    kept = [product.result, *states, None, layer.operand(slot + 1), None, recurrent_bias, *rest]
    while kept[-1] is None:
        kept.pop()
    new = rewriter.emit(layer.name, kept, layer.attributes, layer.results[0].name)
    rewriter.replace(layer, new.results)


def _location(layer: Operation, weight: Value) -> Location:
    """The module path of the product is the path of its weight: those of one module's layers differ."""
    path = "" if evaluate_weight(weight) is None else key_of(weight)
    return replace(layer.location, module=path) if path else layer.location


def sums_biases(layer: Operation) -> bool:
    """Whether the layer uses the two biases as their sum only."""
    definition = layer.definition
    return isinstance(definition, Recurrent) and definition.joined


def _sum(rewriter: Rewriter, bias: Value | None, recurrent_bias: Value) -> Value:
    """The sum of both; of constants, rounded once."""
    if bias is None:
        return recurrent_bias
    if bias.constant is None or recurrent_bias.constant is None:
        total: Value = rewriter.add(bias, recurrent_bias)
        return total
    exact = bias.constant.double() + recurrent_bias.constant.double()
    return rewriter.constant(exact.to(bias.constant.dtype), key_of(bias))
