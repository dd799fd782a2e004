"""Where a graph is quantized: which values get codes, and which operations read them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from whet.ir.dimensions import same_dim
from whet.ir.graph import Graph, Operation, Value
from whet.ir.ops.contraction import spatial_dims
from whet.ir.ops.elementwise import Elementwise
from whet.passes.quantization.integer_forms import dequantized
from whet.passes.quantization.recurrent import INTEGER_FORMS

CONTRACTIONS: Final = ("conv", "linear", "matmul")
"""Operations that are quantized for their own sake."""
JOINS: Final = ("add", "sub", "mul")
"""Element-wise operations of two feature maps; one of them may come straight out of an integer operation."""
POOLS: Final = ("mean", "avg_pool", "adaptive_avg_pool")
"""Sums over positions."""
QUANTIZABLE: Final = (*CONTRACTIONS, *JOINS, *POOLS, "concat", *INTEGER_FORMS)
"""Everything that `QuantizeStatic` can be asked to quantize."""

# Codes may as well be made before these, which then move or select them.
_TRANSPARENT: Final = frozenset({"reshape", "transpose", "flip", "max_pool"})
# What makes feature maps of feature maps, besides elementwise operations.
_CARRIERS: Final = frozenset({*_TRANSPARENT, *POOLS, "concat", "slice", "batch_norm", "pad"})


@dataclass
class Placement:
    """What is to be quantized.

    `sources` has an entry for each value that gets codes: the value whose range their parameters are for, which
    is another one where operands of a concat share its result's. `edges` are operands of concats that have codes of
    their own already and are given the result's for it alone.
    """

    layers: list[Operation]
    sources: dict[Value, Value] = field(default_factory=dict)
    edges: list[tuple[Operation, int]] = field(default_factory=list)
    feature_maps: set[Value] = field(default_factory=set)
    """Values made of convolutions' results: all that reads one of them may read its codes."""

    def reads_codes(self, value: Value, reader: Operation) -> bool:
        """Whether an operation reads the codes of a value that has some.

        Feature maps are large, and everyone does. What else is quantized (tokens behind a normalization) is small,
        and a few of its channels are far larger than all others: residual additions keep the real numbers.
        """
        return value in self.feature_maps or reader.name in CONTRACTIONS or reader.name in _TRANSPARENT

    @property
    def observed(self) -> list[Value]:
        """Values whose ranges are needed, each once."""
        results = [operation.result for operation, _ in self.edges]
        return list(dict.fromkeys([*self.sources.values(), *results]))


def place(graph: Graph, layers: Iterable[Operation], followers: Collection[Operation]) -> Placement:
    """Codes for what `layers` (contractions) read, and for what `followers` read of convolutions' results."""
    return _Placer(graph, list(layers), set(followers)).run()


def root(value: Value) -> Value:
    """Where the elements of a value come from, through what only moves or selects them."""
    while value.producer is not None and value.producer.name in _TRANSPARENT:
        value = value.producer.operand(0)
    return value


class _Placer:
    def __init__(self, graph: Graph, layers: list[Operation], followers: set[Operation]) -> None:
        self.graph = graph
        self.placement = Placement(layers)
        self.followers = followers
        self.returned = set(graph.returns)
        self.selected = set(layers)
        self.born = self.placement.feature_maps

    def run(self) -> Placement:
        for layer in self.placement.layers:
            for value in activations(layer):
                self._quantize(root(value))
        concats = []
        for operation in self.graph.operations:
            self._carry(operation)
            if operation not in self.followers:
                continue
            if operation.name == "concat":
                concats.append(operation)
            elif operation.name in POOLS:
                self._pool(operation)
            else:
                self._join(operation)
        for operation in reversed(concats):
            self._concat(operation)
        return self.placement

    def _quantize(self, value: Value) -> None:
        self.placement.sources.setdefault(value, value)

    def _carry(self, operation: Operation) -> None:
        carries = (operation.name == "conv" and operation in self.selected) or (
            (isinstance(operation.definition, Elementwise) or operation.name in _CARRIERS)
            and any(value in self.born for value in operation.operands)
        )
        if carries:
            self.born.update(operation.results)

    def _pool(self, operation: Operation) -> None:
        value = root(operation.operand(0))
        if value in self.born and _is_spatial(operation):
            self._quantize(value)

    def _join(self, operation: Operation) -> None:
        """All operands but one, which the kernel that makes it may pass on in registers."""
        full = [
            value
            for value in dict.fromkeys(operation.operands)
            if value is not None and value in self.born and _same_shape(value, operation.result)
        ]
        passed = next((value for value in full if self._is_passed_on(value)), None)
        for value in full:
            if value is not passed:
                self._quantize(root(value))

    def _is_passed_on(self, value: Value) -> bool:
        """Whether elementwise operations alone, each read once, lead from a contraction to `value`."""
        while value not in self.placement.sources and value not in self.returned and len(value.uses) == 1:
            operation = value.producer
            if operation is None or operation in self.selected:
                return operation is not None
            if not isinstance(operation.definition, Elementwise):
                return False
            value = operation.operand(0)
        return False

    def _concat(self, operation: Operation) -> None:
        """Operands that nothing else reads take the parameters of the result, which is theirs together."""
        values = [value for value in operation.operands if value is not None]
        if not any(value in self.born for value in values):
            return
        result = operation.result
        self._quantize(result)
        for index, value in enumerate(values):
            if value not in self.placement.sources and value not in self.returned and len(value.uses) == 1:
                self.placement.sources[value] = self.placement.sources[result]
            else:
                self.placement.edges.append((operation, index))


def activations(layer: Operation) -> list[Value]:
    """The operands of a contraction that depend on the model's inputs: all of a matmul's, the first of a layer's."""
    values = layer.operands if layer.name == "matmul" else layer.operands[:1]
    return [value for value in values if value is not None and dequantized(value) is None]


def _is_spatial(operation: Operation) -> bool:
    """Whether a mean is over the positions of a feature map (of either layout), and not within a normalization."""
    if operation.name != "mean":
        return True
    rank, dims = operation.operand(0).type.rank, set(operation.attributes["dims"])
    layouts = ("channels_first", "channels_last")
    return rank >= 4 and any(dims == set(spatial_dims(rank, layout)) for layout in layouts)


def _same_shape(left: Value, right: Value) -> bool:
    return left.type.rank == right.type.rank and all(map(same_dim, left.type.shape, right.type.shape))
