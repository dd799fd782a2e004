"""Factors a channel that move through a graph: which operations pass them on, and which weights take them in."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from whet.ir.builder import Builder
from whet.ir.dimensions import product, same_dim
from whet.ir.graph import Graph, Operation, Value
from whet.passes.rewrite.pattern import MatchFailure
from whet.passes.weights import LAYERS, output_dim, rounded, scale_inputs, scale_outputs

NORMS: Final = frozenset({"layer_norm", "rms_norm", "batch_norm", "group_norm"})
"""Operations whose `weight` and `bias` operands scale and shift a channel."""

_NORM_PARAMETERS: Final = {"layer_norm": (1, 2), "rms_norm": (1,), "group_norm": (1, 2), "batch_norm": (3, 4)}


class Weights:
    """Constants of a clone as float64 tensors, edited any number of times and rounded once, by `commit`.

    A weight is a plain constant or one behind masks (pruned), used once: others would change with it.
    """

    def __init__(self) -> None:
        self._tensors: dict[Operation, Tensor] = {}

    def constant(self, value: Value) -> Operation:
        """The constant behind a weight. Raises MatchFailure where it is another's too, or none."""
        while True:
            producer = value.producer
            if producer is None or producer.name not in ("constant", "masked"):
                raise MatchFailure("must be a constant", value)
            if len(value.uses) != 1:
                raise MatchFailure("is used more than once", value)
            if producer.name == "constant":
                return producer
            value = producer.operand(0)

    def get(self, value: Value) -> Tensor:
        """The weight in float64, masks applied. Raises MatchFailure as `constant` does."""
        tensor = self._of(self.constant(value))
        while value.producer is not None and value.producer.name == "masked":
            mask = value.producer.operand(1).constant
            if mask is None:
                raise MatchFailure("the mask must be a constant", value)
            tensor = tensor.masked_fill(mask.logical_not(), 0)
            value = value.producer.operand(0)
        return tensor

    def change(self, value: Value, edit: Callable[[Tensor], Tensor]) -> None:
        """Replace a weight by `edit(weight)`, which must keep zeros where they are (masks stay)."""
        constant = self.constant(value)
        self._tensors[constant] = edit(self._of(constant))

    def commit(self) -> None:
        """Write what changed into the clone's constants. Raises MatchFailure for what their dtype cannot hold."""
        tensors = {item: rounded(tensor, item.result) for item, tensor in self._tensors.items()}
        for constant, tensor in tensors.items():
            constant.attributes["tensor"] = tensor

    def _of(self, constant: Operation) -> Tensor:
        if constant not in self._tensors:
            tensor: Tensor = constant.attributes["tensor"]
            return tensor.detach().double()
        return self._tensors[constant]


@dataclass(frozen=True)
class Source:
    """Where a factor for each channel of a value can be taken in.

    Attributes:
        operation: a layer or a normalization whose weight (and bias) make the channels.
        spread: each of its channels is this many neighbouring ones of the value (flattened feature maps).
        clamps: operations `clamp(0, maximum)` on the way, which let factors through only if their bound follows, each
            with the dimension of its channels and how many of the value's channels each of them is.
    """

    operation: Operation
    spread: int
    clamps: tuple[tuple[Operation, int, int], ...]


def find_source(value: Value, dim: int, users: Collection[Operation], returned: Collection[Value]) -> Source:
    """The operation whose weights can take in factors along dimension `dim` of `value`, for `users` alone.

    Raises MatchFailure, with the reason, where another reader would see them, where an operation on the way does not
    commute with positive factors, or where the weights cannot be changed.
    """
    return _find(value, dim, 1, (), set(users), returned)


def _find(
    value: Value,
    dim: int,
    spread: int,
    clamps: tuple[tuple[Operation, int, int], ...],
    readers: set[Operation],
    returned: Collection[Value],
) -> Source:
    operation = value.producer
    if value in returned or any(user not in readers for user in value.users):
        raise MatchFailure("is read elsewhere too, which would see the factors", value)
    if operation is None:
        raise MatchFailure("comes from outside of the graph", value)
    if operation.name in LAYERS or operation.name in NORMS:
        _require_scalable(operation, dim)
        return Source(operation, spread, clamps)
    if operation.name not in _STEPS:
        raise MatchFailure(f"{operation.name} does not commute with factors", value)
    if operation.name == "clamp" and operation.attributes["maximum"] is not None:
        clamps = (*clamps, (operation, dim, spread))
    *others, last = _STEPS[operation.name](operation, dim)
    for before, place, wider in others:
        try:
            return _find(before, place, spread * wider, clamps, {operation}, returned)
        except MatchFailure:
            continue
    before, place, wider = last
    return _find(before, place, spread * wider, clamps, {operation}, returned)


def _require_scalable(operation: Operation, dim: int) -> None:
    weights = Weights()
    for value in _parameters(operation):
        weights.get(value)
    if dim != _channel_dim(operation):
        raise MatchFailure(f"dimension {dim} is not that of its channels", operation.result)
    if operation.name in NORMS and operation.operands[_NORM_PARAMETERS[operation.name][0] :][:1] in ([], [None]):
        raise MatchFailure(f"{operation.name} has no weight to take the factors in", operation.result)


def _parameters(operation: Operation) -> list[Value]:
    slots = (1, 2) if operation.name in LAYERS else _NORM_PARAMETERS[operation.name]
    values = [operation.operands[slot] for slot in slots if slot < len(operation.operands)]
    return [value for value in values if value is not None]


def _channel_dim(operation: Operation) -> int | None:
    """The dimension of the result that the parameters run along; None where there are several."""
    if operation.name in LAYERS:
        return output_dim(operation)
    if operation.name == "batch_norm":
        return int(operation.attributes["axis"])
    last = operation.result.type.rank - 1
    if operation.name == "group_norm":
        return 1 if operation.attributes["layout"] == "channels_first" else last
    return last if operation.attributes["rank"] == 1 else None


def scale_source(weights: Weights, operation: Operation, factors: Tensor) -> None:
    """Make channel c of a source's result factors[c] times as large."""
    parameters = _parameters(operation)
    if operation.name in LAYERS:
        weights.change(parameters[0], lambda weight: scale_outputs(operation, weight, factors))
        parameters = parameters[1:]
    for parameter in parameters:
        weights.change(parameter, lambda tensor: tensor * factors)


def scale_reader(weights: Weights, layer: Operation, factors: Tensor) -> None:
    """Make a layer take its input channel c as if it were factors[c] times as large."""
    weights.change(layer.operand(1), lambda weight: scale_inputs(layer, weight, factors))


def output_ranges(layer: Operation, weight: Tensor) -> Tensor:
    """max |w| of what makes each output channel."""
    if layer.name != "conv_transpose":
        return weight.abs().flatten(1).amax(1)
    return _grouped(weight, layer).amax((1, 3)).flatten()


def input_ranges(layer: Operation, weight: Tensor) -> Tensor:
    """max |w| of what reads each input channel."""
    if layer.name == "conv_transpose":
        return weight.abs().flatten(1).amax(1)
    if layer.name == "linear":
        return weight.abs().amax(0)
    return _grouped(weight, layer).amax((1, 3)).flatten()


def _grouped(weight: Tensor, layer: Operation) -> Tensor:
    """|weight| as [groups, rows a group, columns, kernel]."""
    groups = layer.attributes["groups"]
    return weight.abs().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def per_source(ranges: Tensor, spread: int) -> Tensor:
    """The largest of the ranges of the `spread` channels that each channel of a source becomes."""
    return ranges.reshape(-1, spread).amax(1)


def balanced(first: Tensor, second: Tensor) -> Tensor:
    """√(first / second), and 1 where either is 0: a channel that nothing makes or reads has no range to share."""
    ratio = torch.sqrt(first / second)
    return torch.where((first > 0) & (second > 0) & torch.isfinite(ratio) & (ratio > 0), ratio, torch.ones_like(ratio))


_Steps = list[tuple[Value, int, int]]


def _same(operation: Operation, dim: int) -> _Steps:
    return [(operation.operand(0), dim, 1)]


def _channelwise(operation: Operation, dim: int) -> _Steps:
    """Pooling and padding: the channels stay apart."""
    channel = 1 if operation.attributes["layout"] == "channels_first" else operation.result.type.rank - 1
    if dim != channel:
        raise MatchFailure("mixes the factors", operation.result)
    return [(operation.operand(0), dim, 1)]


def _clamp(operation: Operation, dim: int) -> _Steps:
    if operation.attributes["minimum"] != 0:
        raise MatchFailure("a clamp from another bound than 0 does not commute with factors", operation.result)
    return [(operation.operand(0), dim, 1)]


def _reduction(operation: Operation, dim: int) -> _Steps:
    dims, rank = operation.attributes["dims"], operation.operand(0).type.rank
    kept = list(range(rank)) if operation.attributes["keepdims"] else [item for item in range(rank) if item not in dims]
    if kept[dim] in dims:
        raise MatchFailure("mixes the factors", operation.result)
    return [(operation.operand(0), kept[dim], 1)]


def _pad(operation: Operation, dim: int) -> _Steps:
    constant = operation.attributes["mode"] == "constant"
    if (constant and operation.attributes["value"]) or operation.attributes["padding"][dim] != (0, 0):
        raise MatchFailure("pads by something else than zeros, or channels", operation.result)
    return [(operation.operand(0), dim, 1)]


def _transpose(operation: Operation, dim: int) -> _Steps:
    return [(operation.operand(0), operation.attributes["permutation"][dim], 1)]


def _reshape(operation: Operation, dim: int) -> _Steps:
    """Channels that stay a dimension between the same products, or that positions behind them are flattened into."""
    before, after = operation.operand(0).type.shape, operation.result.type.shape
    for place, size in enumerate(before):
        if not same_dim(product(before[:place]), product(after[:dim])):
            continue
        if same_dim(size, after[dim]):
            return [(operation.operand(0), place, 1)]
        wider = product(before[place + 1 :])
        if isinstance(wider, int) and wider and dim == len(after) - 1 and same_dim(product(before[place:]), after[dim]):
            return [(operation.operand(0), place, wider)]
    raise MatchFailure("reshapes the channels", operation.result)


def _mul(operation: Operation, dim: int) -> _Steps:
    """A product takes the factors in one of its operands, whichever has all of the channels and can."""
    found: _Steps = []
    for value in (operation.operand(0), operation.operand(1)):
        place = dim - operation.result.type.rank + value.type.rank
        whole = place >= 0 and same_dim(value.type.shape[place], operation.result.type.shape[dim])
        if whole and len(value.uses) == 1:
            found.append((value, place, 1))
    if not found:
        raise MatchFailure("neither operand can take the factors alone", operation.result)
    return found


_STEPS: Final[dict[str, Callable[[Operation, int], _Steps]]] = {
    "relu": _same,
    "leaky_relu": _same,
    "abs": _same,
    "clamp": _clamp,
    "max_pool": _channelwise,
    "avg_pool": _channelwise,
    "adaptive_avg_pool": _channelwise,
    "adaptive_max_pool": _channelwise,
    "mean": _reduction,
    "sum": _reduction,
    "amax": _reduction,
    "pad": _pad,
    "transpose": _transpose,
    "reshape": _reshape,
    "mul": _mul,
}
"""Operations that commute with positive factors a channel -> the operands that may carry them, the dimension there,
and how many of the result's channels each of the operand's is.
"""


def insert_scaled(graph: Graph, value: Value, factors: Tensor, readers: Collection[Operation]) -> None:
    """Let `readers` read value · factors, along the last dimension, in the place of `value`."""
    builder = Builder(graph, before=min(readers, key=graph.operations.index))
    scaled = builder.mul(value, builder.constant(rounded(factors, value)), name_hint=f"{value.name}.scaled")
    for reader in readers:
        reader.set_operand(0, scaled)


def readers_of(graph: Graph, layers: Collection[Operation]) -> dict[Value, list[Operation]]:
    """The values that `layers` read as their first operand alone, in order, and which of the layers read each."""
    found: dict[Value, list[Operation]] = {}
    for operation in graph.operations:
        if operation in layers and operation.operand(0) not in operation.operands[1:]:
            found.setdefault(operation.operand(0), []).append(operation)
    return found
