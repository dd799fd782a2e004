"""Which weights of a graph can be factored, and which of them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from whet.ir.graph import Graph, Operation, Value
from whet.passes.factorization.low_rank import Unit
from whet.passes.rewrite.tracer import Tracer
from whet.passes.selection import select_layers
from whet.passes.weights import evaluate_weight, is_quantized

FACTORED_SLOTS: Final = {"linear": 1, "take": 0, "conv": 1}
"""Layers that can be factored -> the operand that is the weight."""


def find_units(graph: Graph, exclude: Sequence[str], joint: bool, who: str, tracer: Tracer | None) -> list[Unit]:
    """The weights of the layers that `exclude` does not name, each with all of its layers, in order.

    With `joint`, weights of linear layers that read the same value, and nothing else does, are one unit. Why a layer
    is left out is told to the tracer under the name `who`. Raises PassError for patterns that fit nothing.
    """
    selected = select_layers(graph, FACTORED_SLOTS, exclude)
    users: dict[Value, list[Operation]] = {}
    for layer in selected:
        users.setdefault(layer.operand(FACTORED_SLOTS[layer.name]), []).append(layer)
    units = []
    for value, layers in users.items():
        reason = _reason_to_leave(graph, value, layers)
        tensor = None if reason else evaluate_weight(value)
        if tensor is not None and tensor.is_floating_point():
            units.append(Unit((value,), tuple(layers), (tensor,)))
        elif tracer is not None and (reason or layers[0].name != "take"):
            tracer.decline(who, layers[0], reason or "its weight is no floating-point constant", (value,))
    return _joined(units) if joint else units


def _reason_to_leave(graph: Graph, value: Value, layers: Sequence[Operation]) -> str:
    if is_quantized(value):
        return "its weight is quantized: factorize first, then quantize"
    others = [user for user in value.users if user not in layers]
    if others or value in graph.returns:
        return f"its weight is used elsewhere too: {others[0] if others else 'it is returned'}"
    if any(layer.name == "take" and (layer.attributes["axis"] != 0 or value.type.rank != 2) for layer in layers):
        return "takes something else than rows of a matrix"
    groups = {layer.attributes["groups"] for layer in layers if layer.name == "conv"}
    return "its weight is tied between convolutions of other groups" if len(groups) > 1 else ""


def _joined(units: Sequence[Unit]) -> list[Unit]:
    by_input: dict[Value, list[Unit]] = {}
    for unit in units:
        if len(unit.layers) == 1 and unit.layers[0].name == "linear":
            by_input.setdefault(unit.layers[0].operand(0), []).append(unit)
    joined = {id(unit): group for group in by_input.values() for unit in group}
    result = []
    for unit in units:
        group = joined.get(id(unit), [unit])
        if unit is group[0]:
            result.append(_join(group))
    return result


def _join(group: Sequence[Unit]) -> Unit:
    return Unit(
        tuple(weight for unit in group for weight in unit.weights),
        tuple(layer for unit in group for layer in unit.layers),
        tuple(tensor for unit in group for tensor in unit.tensors),
    )
