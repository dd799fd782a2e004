"""Reading and writing at indices: index, gather, scatter, masks, searching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.frontend.context import Context, Operand
from whet.frontend.converters.common import index_constant, strides, unsupported, wrapped
from whet.frontend.converters.shape import slice_dim
from whet.ir.definition import broadcast_shapes
from whet.ir.dimensions import Dim, product
from whet.ir.graph import Value
from whet.ir.types import DType

aten = torch.ops.aten

Indices = Sequence[Value | None]
_MASKS = (DType.BOOL, DType.U8)


class _Selection:
    """x[indices] brought to one vector of indices along one dimension.

    The indexed dimensions are moved together (to the front unless they are neighbours, as torch does) and
    merged to one; the index tensors, broadcast together, become positions in it.
    """

    def __init__(self, c: Context, x: Value, indices: Indices) -> None:
        pairs = _integer_indices(c, indices)
        dims = [dim for dim, _ in pairs]
        self.c = c
        adjacent = dims == list(range(dims[0], dims[0] + len(dims)))
        rest = [dim for dim in range(x.type.rank) if dim not in dims]
        at = dims[0] if adjacent else 0
        self.permutation = (*rest[:at], *dims, *rest[at:])
        self.axis = at
        moved = tuple(x.type.shape[dim] for dim in self.permutation)
        self.moved_shape = moved
        sizes = moved[at : at + len(dims)]
        self.merged_shape = (*moved[:at], product(sizes), *moved[at + len(dims) :])
        self.shape = broadcast_shapes(*(index.type.shape for _, index in pairs))
        """The shape of all index tensors together."""
        self.positions = _positions(c, [index for _, index in pairs], sizes)

    def merged(self, x: Value) -> Value:
        """x with the indexed dimensions as one, at `axis`."""
        return self.c.reshape_to(_permuted(self.c, x, self.permutation), self.merged_shape)

    def restored(self, x: Value) -> Value:
        """The inverse of `merged`."""
        inverse = tuple(self.permutation.index(dim) for dim in range(len(self.permutation)))
        return _permuted(self.c, self.c.reshape_to(x, self.moved_shape), inverse)


def _permuted(c: Context, x: Value, permutation: tuple[int, ...]) -> Value:
    if permutation == tuple(range(len(permutation))):
        return x
    result: Value = c.transpose(x, permutation=permutation)
    return result


def _integer_indices(c: Context, indices: Indices) -> list[tuple[int, Value]]:
    """(dimension, index) pairs; a constant mask becomes the indices of its true elements."""
    pairs: list[tuple[int, Value]] = []
    dim = 0
    for index in indices:
        if index is None:
            dim += 1
        elif index.type.dtype not in _MASKS:
            pairs.append((dim, index))
            dim += 1
        elif index.constant is None:
            raise unsupported(c, "how many elements a mask selects depends on the data; use torch.where")
        else:
            columns = index.constant.bool().nonzero(as_tuple=True)
            pairs += [(dim + offset, index_constant(c, column)) for offset, column in enumerate(columns)]
            dim += index.type.rank
    return pairs


def _positions(c: Context, indices: Sequence[Value], sizes: Sequence[Dim]) -> Value:
    """Row-major positions in a tensor of `sizes`, of the shape that the indices broadcast to."""
    dtype = indices[0].type.dtype if len(indices) == 1 else DType.I64
    total: Value | None = None
    for index, size, stride in zip(indices, sizes, strides(sizes), strict=True):
        index = wrapped(c, c.cast(index, dtype), size)
        if stride != 1:
            index = c.mul(index, c.operand(stride, dtype))
        total = index if total is None else c.add(total, index)
    assert total is not None
    return total


def _index(c: Context, x: Value, indices: Indices) -> Value:
    if all(index is None for index in indices):
        return x
    selection = _Selection(c, x, indices)
    return c.reshape_to(c.take(selection.merged(x), selection.positions, axis=selection.axis), c.shape)


def _index_put(c: Context, x: Value, indices: Indices, values: Value, accumulate: bool = False, *_: Any) -> Value:
    given = [index for index in indices if index is not None]
    values = c.cast(values, x.type.dtype)
    if len(given) == 1 and given[0].type.dtype in _MASKS and given[0].constant is None:
        return _masked_put(c, x, list(indices).index(given[0]), given[0], values, accumulate)
    selection = _Selection(c, x, indices)
    target = selection.merged(x)
    before, after = target.type.shape[: selection.axis], target.type.shape[selection.axis + 1 :]
    spread = _broadcast(c, values, (*before, *selection.shape, *after))
    count = product(selection.shape)
    written = c.scatter_slices(
        target,
        c.reshape_to(_broadcast(c, selection.positions, selection.shape), (count,)),
        c.reshape_to(spread, (*before, count, *after)),
        axis=selection.axis,
        reduction=_accumulation(c, accumulate),
    )
    return selection.restored(written)


def _accumulation(c: Context, accumulate: bool) -> str:
    if not accumulate:
        return "replace"
    return "amax" if c.dtype is DType.BOOL else "add"


def _broadcast(c: Context, x: Value, shape: Sequence[Dim]) -> Value:
    result: Value = x if x.type.shape == tuple(shape) else c.broadcast_to(x, shape=tuple(shape))
    return result


def _masked_put(c: Context, x: Value, first: int, mask: Value, values: Value, accumulate: bool) -> Value:
    """x[..., mask] = values, the same for every selected element: a select, whatever the mask holds."""
    last = first + mask.type.rank
    tail = x.type.rank - last
    # values are aligned to (*before, selected, *after): the selected dimension must be 1 or missing
    padded = (1,) * (x.type.rank - mask.type.rank + 1 - values.type.rank) + values.type.shape
    if padded[first] != 1:
        raise unsupported(c, "a mask that is no constant with one value for each selected element; use torch.where")
    shape = (*padded[:first], *(1,) * mask.type.rank, *padded[first + 1 :])
    values = c.reshape_to(values, shape)
    mask = c.reshape_to(c.cast(mask, DType.BOOL), (*mask.type.shape, *(1,) * tail))
    if accumulate:
        values = c.add(x, values)
    result: Value = c.where(mask, values, x)
    return result


def _take(c: Context, x: Value, index: Value) -> Value:
    """Elements of x as a vector."""
    flat = c.reshape_to(x, (x.type.numel,))
    result: Value = c.take(flat, wrapped(c, index, x.type.numel), axis=0)
    return result


def _put(c: Context, x: Value, index: Value, source: Value, accumulate: bool = False) -> Value:
    flat = c.reshape_to(x, (x.type.numel,))
    index = c.reshape_to(wrapped(c, index, x.type.numel), (index.type.numel,))
    updates = c.reshape_to(source, index.type.shape)
    written = c.scatter_slices(flat, index, updates, axis=0, reduction=_accumulation(c, accumulate))
    return c.reshape_to(written, x.type.shape)


def _vector(c: Context, x: Value) -> Value:
    """Scalars take part in indexing as vectors of one element."""
    return c.reshape_to(x, (1,)) if x.type.rank == 0 else x


def _positive(c: Context, index: Value) -> Value:
    """Indices of operators that refuse negative ones: only the dtype can need a change."""
    return index if index.type.dtype in (DType.I64, DType.I32) else c.cast(index, DType.I64)


def _index_select(c: Context, x: Value, dim: int, index: Value) -> Value:
    axis = c.dim(dim, x.type.rank)
    return c.reshape_to(c.take(_vector(c, x), _positive(c, _vector(c, index)), axis=axis), c.shape)


def _gather(c: Context, x: Value, dim: int, index: Value, *_: Any) -> Value:
    if index.type.numel == 0:  # of any rank
        nothing: Value = c.full(shape=c.shape, value=_typed(c.dtype, 0), dtype=c.dtype)
        return nothing
    axis = c.dim(dim, x.type.rank)
    return c.reshape_to(c.gather(_vector(c, x), _positive(c, _vector(c, index)), axis=axis), c.shape)


_REDUCTIONS = {
    "add": "add",
    "sum": "add",
    "mean": "add",
    "multiply": "mul",
    "prod": "mul",
    "amax": "amax",
    "amin": "amin",
}


def _scatter(c: Context, x: Value, dim: int, index: Value, source: Operand, reduce: str | None = None) -> Value:
    if index.type.numel == 0:
        return x
    axis = c.dim(dim, x.type.rank)
    x, index = _vector(c, x), _positive(c, _vector(c, index))
    updates = _updates(c, source, index)
    reduction = "replace" if reduce is None else _REDUCTIONS[reduce]
    return c.reshape_to(c.scatter(x, index, updates, axis=axis, reduction=reduction), c.shape)


def _updates(c: Context, source: Operand, index: Value) -> Value:
    """The part of `source` that belongs to indices: torch lets it be larger."""
    if not isinstance(source, Value):
        result: Value = c.broadcast_to(c.operand(source, c.dtype), shape=index.type.shape)
        return result
    source = _vector(c, c.cast(source, c.dtype))
    for axis, size in enumerate(index.type.shape):
        source = slice_dim(c, source, axis, 0, size)
    return source


def _scatter_add(c: Context, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _scatter(c, x, dim, index, source, "amax" if c.dtype is DType.BOOL else "add")


def _scatter_reduce(
    c: Context, x: Value, dim: int, index: Value, source: Value, reduce: str, include_self: bool = True
) -> Value:
    if index.type.numel == 0:
        return x
    axis = c.dim(dim, x.type.rank)
    start, index = _vector(c, x), _positive(c, _vector(c, index))
    updates = _updates(c, source, index)

    def scatter(base: Value, values: Value, reduction: str) -> Value:
        result: Value = c.scatter(base, index, values, axis=axis, reduction=reduction)
        return result

    return c.reshape_to(_reduced(c, start, updates, reduce, include_self, scatter), c.shape)


def _reduced(
    c: Context,
    x: Value,
    updates: Value,
    reduce: str,
    include_self: bool,
    scatter: Callable[[Value, Value, str], Value],
) -> Value:
    """A scatter with torch's options: without the old elements, and as a mean."""
    base = x if include_self else scatter(x, _like(c, updates, _neutral(c.dtype, reduce)), "replace")
    total = scatter(base, updates, _REDUCTIONS[reduce])
    if reduce != "mean":
        return total
    # where nothing is written x stays, and counts as one
    start = _like(c, x, 1) if include_self else scatter(_like(c, x, 1), _like(c, updates, 0), "replace")
    count = scatter(start, _like(c, updates, 1), "add")
    name = "div" if c.dtype.is_float else "floor_div"
    result: Value = getattr(c, name)(total, count)
    return result


def _like(c: Context, x: Value, value: float) -> Value:
    result: Value = c.full(shape=x.type.shape, value=_typed(x.type.dtype, value), dtype=x.type.dtype)
    return result


def _typed(dtype: DType, value: float) -> float:
    if dtype is DType.BOOL:
        return bool(value)
    return float(value) if dtype.is_float else int(value)


def _neutral(dtype: DType, reduce: str) -> float:
    """What changes nothing under a reduction."""
    if reduce in ("add", "sum", "mean"):
        return 0
    if reduce in ("prod", "multiply"):
        return 1
    if dtype is DType.BOOL:
        return reduce == "amin"
    low, high = (float("-inf"), float("inf")) if dtype.is_float else dtype.integer_range
    return low if reduce == "amax" else high


def _slices(c: Context, x: Value, dim: int, index: Value, updates: Value, reduction: str) -> Value:
    axis = c.dim(dim, x.type.rank)
    target, index = _vector(c, x), _vector(c, index)
    expected = (*target.type.shape[:axis], index.type.shape[0], *target.type.shape[axis + 1 :])
    written = c.scatter_slices(
        target, _positive(c, index), c.reshape_to(updates, expected), axis=axis, reduction=reduction
    )
    return c.reshape_to(written, c.shape)


def _index_add(c: Context, x: Value, dim: int, index: Value, source: Value, alpha: Operand = 1) -> Value:
    updates = c.cast(source, c.dtype)
    if alpha != 1:
        updates = c.mul(updates, c.operand(alpha, c.dtype))
    return _slices(c, x, dim, index, updates, "amax" if c.dtype is DType.BOOL else "add")


def _index_copy(c: Context, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _slices(c, x, dim, index, source, "replace")


def _index_fill(c: Context, x: Value, dim: int, index: Value, value: Operand) -> Value:
    axis = c.dim(dim, x.type.rank)
    index = _vector(c, index)
    size: Dim = x.type.shape[axis] if x.type.rank else 1
    shape = (*x.type.shape[:axis], index.type.shape[0], *x.type.shape[axis + 1 :])
    updates = c.broadcast_to(c.reshape_to(c.operand(value, c.dtype), ()), shape=shape)
    return _slices(c, x, dim, wrapped(c, index, size), updates, "replace")


def _index_reduce(
    c: Context, x: Value, dim: int, index: Value, source: Value, reduce: str, include_self: bool = True
) -> Value:
    def scatter(base: Value, values: Value, reduction: str) -> Value:
        return _slices(c, base, dim, index, values, reduction)

    return _reduced(c, x, source, reduce, include_self, scatter)


def _masked_scatter(c: Context, x: Value, mask: Value, source: Value) -> Value:
    """The i-th true element of the mask takes the i-th element of the source."""
    mask = _broadcast(c, c.cast(mask, DType.BOOL), c.shape)
    flat = c.reshape_to(mask, (mask.type.numel,))
    if source.type.numel == 0 or flat.type.numel == 0:
        return x
    position = c.clamp(c.sub(c.cumsum(c.cast(flat, DType.I64), dim=0), 1), minimum=0)
    # the last positions may lie beyond the source, but only where the mask is false
    last = c.operand(source.type.numel - 1, DType.I64)
    picked = c.take(c.reshape_to(source, (source.type.numel,)), c.minimum(position, last), axis=0)
    result: Value = c.where(mask, c.reshape_to(picked, c.shape), _broadcast(c, x, c.shape))
    return result


def _searchsorted(
    c: Context,
    boundaries: Value,
    values: Operand,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Value | None = None,
) -> Value:
    """How many boundaries come before each value: below it, or also equal to it where `right`."""
    if sorter is not None:
        boundaries = c.gather(boundaries, sorter, axis=boundaries.type.rank - 1)
    edges, needles = c.promote(boundaries, values)
    shape = needles.type.shape
    if edges.type.rank > 1:
        edges = c.reshape(edges, shape=(*edges.type.shape[:-1], 1, edges.type.shape[-1]))
    needles = c.reshape(needles, shape=(*shape, 1))
    # not (edge >= value) rather than edge < value: NaN sorts last
    after = c.gt(edges, needles) if right or side == "right" else c.ge(edges, needles)
    before = c.cast(c.logical_not(after), c.dtype)
    result: Value = c.sum(before, dims=(before.type.rank - 1,), keepdims=False)
    return result


def _bucketize(c: Context, values: Operand, boundaries: Value, out_int32: bool = False, right: bool = False) -> Value:
    return _searchsorted(c, boundaries, values, out_int32, right)


def _isin(c: Context, elements: Operand, tests: Operand, _unique: bool = False, invert: bool = False) -> Value:
    x, y = c.promote(elements, tests)
    grown = c.reshape(x, shape=(*x.type.shape, 1))
    found = c.any(c.eq(grown, c.reshape_to(y, (y.type.numel,))), dims=(x.type.rank,), keepdims=False)
    result: Value = c.logical_not(found) if invert else found
    return result


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.index.Tensor: _index,
    aten._unsafe_index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten._unsafe_index_put.default: _index_put,
    aten.take.default: _take,
    aten.put.default: _put,
    aten.index_select.default: _index_select,
    aten.gather.default: _gather,
    aten.scatter.src: _scatter,
    aten.scatter.value: _scatter,
    aten.scatter.reduce: _scatter,
    aten.scatter.value_reduce: _scatter,
    aten.scatter_add.default: _scatter_add,
    aten.scatter_reduce.two: _scatter_reduce,
    aten.index_add.default: _index_add,
    aten.index_copy.default: _index_copy,
    aten.index_fill.int_Scalar: _index_fill,
    aten.index_fill.int_Tensor: _index_fill,
    aten.index_reduce.default: _index_reduce,
    aten.masked_scatter.default: _masked_scatter,
    aten.searchsorted.Tensor: _searchsorted,
    aten.searchsorted.Scalar: _searchsorted,
    aten.bucketize.Tensor: _bucketize,
    aten.bucketize.Scalar: _bucketize,
    aten.isin.Tensor_Tensor: _isin,
    aten.isin.Tensor_Scalar: _isin,
    aten.isin.Scalar_Tensor: _isin,
}
