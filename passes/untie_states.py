"""Letting recurrent layers start from states of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from whet.ir.graph import Graph, Operation, Value
from whet.ir.ops.recurrent import Recurrent
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import DeadCodeElimination
from whet.passes.rewrite.rewriter import Rewriter

_MOVEMENTS: Final = frozenset({"reshape", "slice", "transpose", "broadcast_to", "flip"})


@dataclass(frozen=True)
class UntieStates(Pass):
    """A constant that several recurrent layers start from becomes one for each of them.

    Frameworks make one tensor of zeros for all layers (and common subexpressions are one value), which ties the units
    of layers that have nothing else to do with each other: structured pruning would remove unit 5 of each or of none.
    """

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Each state that gets a constant of its own counts as one change."""
        clone = graph.clone()
        rewriter = Rewriter(clone)
        layers = [operation for operation in clone.operations if isinstance(operation.definition, Recurrent)]
        changed = sum(_untie(rewriter, layer) for layer in layers)
        if not changed:
            return PassResult(graph, False)
        rewriter.commit()
        return PassResult(DeadCodeElimination().run(clone, context).graph, True, {"initial state untied": changed})


def _untie(rewriter: Rewriter, layer: Operation) -> int:
    """Copy what the layer's states are filled with, where that is used anywhere else."""
    definition = layer.definition
    assert isinstance(definition, Recurrent)
    rewriter.begin(layer)
    changed = 0
    for slot in range(1, 1 + definition.states):
        state = layer.operand(slot)
        source, shared = _source(state)
        if source is None or not shared:
            continue
        if source.name == "full":
            attributes = {**source.attributes, "shape": state.type.shape}
        elif source is state.producer:
            attributes = source.attributes
        else:
            continue
        layer.set_operand(slot, rewriter.emit(source.name, (), attributes, state.name).result)
        changed += 1
    return changed


def _source(value: Value) -> tuple[Operation | None, bool]:
    """The operation without operands whose elements `value` has, and whether it is used for anything else."""
    shared = False
    while True:
        shared = shared or len(value.uses) > 1
        producer = value.producer
        if producer is None or not producer.operands:
            return producer, shared
        if producer.name not in _MOVEMENTS:
            return None, shared
        value = producer.operand(0)
