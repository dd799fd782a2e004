"""Channels of zeros that fill the vectors of the CPU's kernels while a graph is trained, and change nothing.

After pruning, convolutions have 11 or 19 channels, of which training makes slower steps than of the 16 or 32 before
(`image_layout`). Channels whose weights, biases and scales are all zero give zeros, get gradients of zero, and so stay
zero: training with them is training without them, only faster. They are cut off again when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from torch import Tensor
from torch.nn import functional as F

from whet.ir.coupling import Coupling, Strand
from whet.ir.dimensions import Dim
from whet.ir.graph import Graph, Operation, Value
from whet.ir.views import tie_graph
from whet.passes.recovery.image_layout import VECTOR, is_filter

_VARIANCE: Final = 2
"""Operand of batch_norm that is divided by."""


def _always(operation: Operation, dim: int) -> bool:
    return True


def _ungrouped(operation: Operation, dim: int) -> bool:
    return bool(operation.attributes["groups"] == 1)


def _around_zero(operation: Operation, dim: int) -> bool:
    low, high = operation.attributes.get("minimum"), operation.attributes.get("maximum")
    return (low is None or low <= 0) and (high is None or high >= 0)


def _not_broadcast(operation: Operation, dim: int) -> bool:
    """One value for all channels would be added to those of zeros too."""
    types = [value.type for value in (*operation.operands, operation.result) if value is not None]
    return len({item.rank for item in types}) == 1 and len({item.shape[dim] for item in types}) == 1


_KEEP_ZEROS: Final[Mapping[str, Callable[[Operation, int], bool]]] = {
    "add": _not_broadcast,
    "avg_pool": _always,
    "batch_norm": _always,
    "clamp": _around_zero,
    "constant": _always,
    "conv": _ungrouped,
    "linear": _always,
    "max_pool": _always,
    "mean": _always,
    "relu": _always,
}
"""Operation -> whether, along a dimension of an operand or result, zeros give zeros and get gradients of zero."""


def widened(graph: Graph) -> Graph:
    """The graph with channels of convolutions filled up to whole vectors with zeros, or itself where none is to fill.

    Names stay, and `narrowed` cuts tensors to what they would be without.
    """
    if not any(is_filter(value) and value.type.static_shape[0] % VECTOR for value in graph.constants):
        # to couple the dimensions of a large model takes seconds
        return graph
    coupling = Coupling(tie_graph(graph))
    values = {value.name: value for value in graph.values()}
    larger = {
        strand: -(-strand.size // VECTOR) * VECTOR
        for strand in coupling.strands
        if strand.size % VECTOR and _can_grow(strand, values)
    }
    return _grown(graph, coupling, larger) if larger else graph


def narrowed(tensor: Tensor, shape: Sequence[Dim]) -> Tensor:
    """A tensor of a widened graph, cut to its shape in the graph before; symbolic sizes are left."""
    return tensor[tuple(slice(size if isinstance(size, int) else None) for size in shape)]


def _strands(coupling: Coupling, value: Value) -> list[Strand]:
    return [coupling.strand((value.name, dim)) for dim in range(value.type.rank)]


def _can_grow(strand: Strand, values: Mapping[str, Value]) -> bool:
    """Channels that a convolution makes, and that only operations see that keep zeros."""
    if strand.pinned is not None or strand.sides or strand.demands:
        return False
    if not any(dim == 0 and is_filter(values[name]) for name, dim in strand.members):
        return False
    return all(_keeps_zeros(values[name], dim) for name, dim in strand.members)


def _keeps_zeros(value: Value, dim: int) -> bool:
    touching = [*value.users] if value.producer is None else [value.producer, *value.users]
    return all(item.name in _KEEP_ZEROS and _KEEP_ZEROS[item.name](item, dim) for item in touching)


def _grown(graph: Graph, coupling: Coupling, larger: Mapping[Strand, int]) -> Graph:
    clone = graph.clone()
    for operation in clone.operations:
        if operation.name == "constant":
            _grow_constant(operation, [larger.get(strand) for strand in _strands(coupling, operation.result)])
        operands = [None if value is None else value.type for value in operation.operands]
        types = operation.definition.result_types(operands, operation.attributes)
        for value, found in zip(operation.results, types, strict=True):
            value.type = found
    return clone


def _grow_constant(operation: Operation, sizes: list[int | None]) -> None:
    tensor: Tensor = operation.attributes["tensor"]
    missing = [0 if size is None else size - old for size, old in zip(sizes, tensor.shape, strict=True)]
    if not any(missing):
        return
    divides = any(user.name == "batch_norm" and index == _VARIANCE for user, index in operation.result.uses)
    padding = [amount for more in reversed(missing) for amount in (0, more)]
    operation.attributes["tensor"] = F.pad(tensor, padding, value=float(divides))
