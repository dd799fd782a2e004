"""How operations work on a tensor whose dimensions are stored in another order: what their attributes become.

An `Order` lists, for every stored dimension, which dimension of the value it is: (0, 2, 3, 1) stores an image
channels-last. A rule takes the operation and the order of its first operand, and gives the attributes that do
the same on the stored tensor and the order of its result, or None where the operation cannot work in that
order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from whet.ir.dimensions import Dim, same_dim
from whet.ir.graph import Operation
from whet.ir.ops.shape import matched_blocks

Order = tuple[int, ...]
Attributes = dict[str, Any]


class Stored(NamedTuple):
    """Attributes for the stored tensor, and the order of the result."""

    attributes: Attributes
    order: Order


Rule = Callable[[Operation, Order], Stored | None]


def identity(rank: int) -> Order:
    """Stored as it is."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """[N, C, *spatial] stored as [N, *spatial, C]."""
    return (0, *range(2, rank), 1) if rank > 2 else identity(rank)


def permuted(items: Sequence[Any], order: Order) -> tuple[Any, ...]:
    """`items`, one a dimension, in stored order."""
    return tuple(items[dim] for dim in order)


def compose(outer: Order, inner: Order) -> Order:
    """The order of a tensor that is stored by `inner` and whose stored form is transposed by `outer`."""
    return tuple(inner[place] for place in outer)


def inverse(order: Order) -> Order:
    """The permutation that undoes `order`."""
    return tuple(order.index(dim) for dim in range(len(order)))


def significant(order: Order, shape: Sequence[Dim]) -> Order:
    """The order of the dimensions that are not 1: two orders that agree in it differ by a reshape at most."""
    return tuple(dim for dim in order if not same_dim(shape[dim], 1))


def _axis(key: str) -> Rule:
    """One dimension (or None) in attribute `key`; the shape stays."""

    def rule(operation: Operation, order: Order) -> Stored | None:
        axis = operation.attributes[key]
        return Stored({**operation.attributes, key: None if axis is None else order.index(axis)}, order)

    return rule


def _quantized(operation: Operation, order: Order) -> Stored | None:
    """Parameters that broadcast lie in the order of their dimensions; x must too."""
    spread = any(value is not None and value.type.rank > 1 for value in operation.operands[1:])
    return None if spread and order != identity(len(order)) else _axis("axis")(operation, order)


def _each(*keys: str) -> Rule:
    """One entry a dimension in attributes `keys`."""

    def rule(operation: Operation, order: Order) -> Stored | None:
        changed = {key: permuted(operation.attributes[key], order) for key in keys}
        return Stored({**operation.attributes, **changed}, order)

    return rule


def _dims(operation: Operation, order: Order) -> Stored | None:
    dims = sorted(order.index(dim) for dim in operation.attributes["dims"])
    return Stored({**operation.attributes, "dims": tuple(dims)}, order)


def _without(order: Order, dims: Sequence[int]) -> Order:
    """The order that is left when dimensions disappear."""
    kept = [dim for dim in order if dim not in dims]
    return tuple(sorted(kept).index(dim) for dim in kept)


def _reduction(operation: Operation, order: Order) -> Stored | None:
    stored = _dims(operation, order)
    if stored is None or operation.attributes["keepdims"]:
        return stored
    return Stored(stored.attributes, _without(order, operation.attributes["dims"]))


def _arg_reduction(operation: Operation, order: Order) -> Stored | None:
    dim, keepdims = operation.attributes["dim"], operation.attributes["keepdims"]
    result = order if keepdims else _without(order, (dim,))
    return Stored({**operation.attributes, "dim": order.index(dim)}, result)


def _broadcast_to(operation: Operation, order: Order) -> Stored | None:
    """New dimensions come first and stay there."""
    shape = operation.attributes["shape"]
    grown = len(shape) - len(order)
    result = (*range(grown), *(dim + grown for dim in order))
    return Stored({**operation.attributes, "shape": permuted(shape, result)}, result)


def _trailing(operation: Operation, order: Order) -> Stored | None:
    """Normalizes the trailing `rank` dimensions: they must still be the trailing ones."""
    rank = operation.attributes["rank"]
    kept = order[len(order) - rank :] == identity(len(order))[len(order) - rank :]
    return Stored(dict(operation.attributes), order) if kept else None


Block = tuple[list[int], list[int]]


def reshape_blocks(operation: Operation) -> list[Block] | None:
    """Runs of operand dimensions with the runs of result dimensions that they become; None where unknown."""
    source, target = operation.operand(0).type.shape, operation.result.type.shape
    blocks = matched_blocks(source, target)
    left = [dim for block, _ in blocks for dim in block]
    right = [dim for _, block in blocks for dim in block]
    complete = left == list(range(len(source))) and right == list(range(len(target)))
    return blocks if complete else None


def reshape_order(blocks: list[Block], order: Order, shape: Sequence[Dim]) -> Order:
    """The order nearest to `order` in which each block is in one piece, so that the reshape moves nothing."""
    place = {dim: index for index, dim in enumerate(order)}

    def first(block: Block) -> tuple[int, ...]:
        real = [place[dim] for dim in block[0] if not same_dim(shape[dim], 1)]
        return (min(real, default=min((place[dim] for dim in block[0]), default=-1)),)

    return tuple(dim for block in sorted(blocks, key=first) for dim in block[0])


def _reshape(operation: Operation, order: Order) -> Stored | None:
    blocks = reshape_blocks(operation)
    if blocks is None or reshape_order(blocks, order, operation.operand(0).type.shape) != order:
        return None
    position = {dim: index for index, dim in enumerate(order)}
    # a block without operand dimensions is of ones that were added: keep it behind the block before it
    starts: list[tuple[int, int]] = []
    last = -1
    for number, (left, _) in enumerate(blocks):
        last = min((position[dim] for dim in left), default=last)
        starts.append((last, number))
    ordered = [blocks[number] for _, number in sorted(starts)]
    result = tuple(dim for _, right in ordered for dim in right)
    return Stored({"shape": permuted(operation.attributes["shape"], result)}, result)


RULES: Final[dict[str, Rule]] = {
    **{name: _axis("axis") for name in ("softmax", "log_softmax", "batch_norm", "concat")},
    **dict.fromkeys(("quantize", "dequantize", "requantize"), _quantized),
    **{name: _axis("dim") for name in ("cumsum", "cumprod")},
    **dict.fromkeys(("sum", "sum_integer", "mean", "prod", "amax", "amin", "any", "all", "var"), _reduction),
    **dict.fromkeys(("argmax", "argmin"), _arg_reduction),
    **dict.fromkeys(("layer_norm", "rms_norm"), _trailing),
    "broadcast_to": _broadcast_to,
    "flip": _dims,
    "pad": _each("padding"),
    "reshape": _reshape,
    "slice": _each("starts", "stops", "steps"),
}
"""Operations besides the elementwise ones (which work in any order), by name."""
