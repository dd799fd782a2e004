"""Forming regions: an anchor with its epilogue, or a run of elementwise and movement operations.

A region becomes one kernel. An operation joins the region that computes one of its operands when that operand is used
by nothing else: then nothing outside of the region can depend on what is inside but through the operation itself, so
the order of regions stays right without looking any further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from whet.ir.dimensions import same_dim
from whet.ir.graph import Graph, Operation, Value
from whet.ir.ops.elementwise import Elementwise
from whet.ir.ops.quantized import Dequantize, Quantize, Requantize
from whet.ir.ops.shape import Movement, Reshape
from whet.ir.ops.weights import DequantizeBlocks
from whet.ir.types import DType, TensorType


class Kind(Enum):
    """How an operation takes part in fusion."""

    VIEW = "view"
    """Moves nothing: a reshape of a whole buffer."""
    MOVEMENT = "movement"
    """Reads its operand elsewhere; computed inside of whatever reads it."""
    ELEMENTWISE = "elementwise"
    """One result element for one element of each operand."""
    ANCHOR = "anchor"
    """Everything that has a schedule of its own: contractions, reductions, windows, gathers."""


def kind_of(operation: Operation) -> Kind:
    """How an operation takes part in fusion."""
    definition = operation.definition
    if isinstance(definition, Reshape):
        return Kind.VIEW
    if isinstance(definition, (Elementwise, Quantize, Dequantize, DequantizeBlocks, Requantize)):
        return Kind.ELEMENTWISE
    if isinstance(definition, Movement) and definition.name in _INLINED_MOVEMENTS:
        return Kind.MOVEMENT
    return Kind.ANCHOR


# Movements that are cheap to compute where they are read. A concat or a pad with many operands is not.
_INLINED_MOVEMENTS = frozenset({"transpose", "broadcast_to", "slice", "flip"})
_MAX_REGION = 24
# About how often an operation's expression reads its operands, with the names that it gives to parts replaced by
# these. TVM's code generation simplifies a chain as if it were written out, which takes the product: chains are cut
# before that hurts.
_EXPANSION: Mapping[str, int] = {
    **dict.fromkeys(
        ("exp", "expm1", "sigmoid", "silu", "tanh", "erf", "erfc", "gelu", "softplus", "log_sigmoid", "elu"), 120
    ),
    "mish": 10_000,
    "sinh": 400,
    "cosh": 120,
    "asinh": 100,
    "acosh": 25,
    "floor_div": 100,
    "remainder": 25,
    "pow": 25,
    **dict.fromkeys(("clamp", "hardsigmoid", "hardswish", "quantize", "requantize"), 25),
    **dict.fromkeys(("relu", "leaky_relu", "maximum", "minimum", "sign", "softsign", "left_shift", "right_shift"), 6),
}
_BFLOAT16_EXPANSION = 12
_LARGEST_EXPANSION = 40_000


@dataclass(eq=False)
class Region:
    """Operations that become one kernel, in topological order; the last one's results leave it."""

    operations: list[Operation] = field(default_factory=list)
    anchor: Operation | None = None
    expansion: int = 1
    """Size of the results' expression, written out, in reads of what the anchor or other kernels computed."""

    @property
    def results(self) -> list[Value]:
        return self.operations[-1].results

    @property
    def inputs(self) -> list[Value]:
        """Values from outside, each once, in order of first use."""
        inside = {result for operation in self.operations for result in operation.results}
        outside = (
            value
            for operation in self.operations
            for value in operation.operands
            if value is not None and value not in inside
        )
        return list(dict.fromkeys(outside))

    @property
    def is_view(self) -> bool:
        return len(self.operations) == 1 and kind_of(self.operations[0]) is Kind.VIEW


def form_regions(graph: Graph, skip: Callable[[Operation], bool] = lambda _: False) -> list[Region]:
    """Every operation but the constants and those to `skip`, in regions, in an order in which they can run."""
    returned = set(graph.returns)
    owner: dict[Value, Region] = {}
    regions: dict[Region, None] = {}
    for operation in graph.operations:
        if operation.name == "constant" or skip(operation):
            continue
        merged = _joined(operation, owner, returned)
        region = Region(
            [op for part in merged for op in part.operations], _anchor(merged), _expansion(operation, merged)
        )
        for part in merged:
            del regions[part]
        region.operations.append(operation)
        if kind_of(operation) is Kind.ANCHOR:
            region.anchor = operation
        regions[region] = None
        for member in region.operations:
            for result in member.results:
                owner[result] = region
    return list(regions)


def _anchor(parts: Iterable[Region]) -> Operation | None:
    return next((part.anchor for part in parts if part.anchor is not None), None)


def _joined(operation: Operation, owner: dict[Value, Region], returned: set[Value]) -> list[Region]:
    """The regions that `operation` joins, in their order."""
    kind = kind_of(operation)
    if kind in (Kind.ANCHOR, Kind.VIEW):
        return []
    parts: list[Region] = []
    for value in dict.fromkeys(value for value in operation.operands if value is not None):
        region = owner.get(value)
        if region is None or value in returned or value.users != [operation] or len(region.results) != 1:
            continue
        if sum(len(part.operations) for part in parts) + len(region.operations) >= _MAX_REGION:
            continue
        if not _may_join(operation, kind, value.type, region, parts):
            continue
        if _expansion(operation, [*parts, region]) <= _LARGEST_EXPANSION:
            parts.append(region)
    return parts


def _expansion(operation: Operation, parts: Sequence[Region]) -> int:
    """The expansion of a region that ends in `operation` behind `parts`."""
    own = _EXPANSION.get(operation.name, 1)
    if operation.results[0].type.dtype is DType.BF16:
        own *= _BFLOAT16_EXPANSION
    inside = {part.results[0]: part.expansion for part in parts}
    return own * sum(inside.get(value, 1) for value in operation.operands if value is not None)


def _may_join(operation: Operation, kind: Kind, operand: TensorType, region: Region, parts: list[Region]) -> bool:
    if region.is_view:
        return False
    if region.anchor is not None:
        free = all(part.anchor is None for part in parts)
        return free and kind is Kind.ELEMENTWISE and _same_shape(operand, operation.results[0].type)
    computes = any(kind_of(member) is Kind.ELEMENTWISE for member in region.operations)
    # recomputing arithmetic for every copy of a broadcast element costs more than a buffer
    return not computes or _same_size(operand, operation.results[0].type)


def _same_shape(left: TensorType, right: TensorType) -> bool:
    return left.rank == right.rank and all(map(same_dim, left.shape, right.shape))


def _same_size(left: TensorType, right: TensorType) -> bool:
    return same_dim(left.numel, right.numel)
