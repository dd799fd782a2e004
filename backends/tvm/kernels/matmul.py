"""Batched matrix products of two activations (attention): the right-hand side is packed at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import te, tirx

from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.contraction import accumulate
from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.kernels.expressions import Dimension, Expression, extent
from whet.backends.tvm.kernels.tiles import Tile, contraction_tile
from whet.backends.tvm.kernels.windows import ceil_to, clamped, floordiv

Reader = Callable[[Sequence[Expression], Expression, Expression], Expression]


def matmul_tile(
    target: CpuTarget,
    batch: Sequence[Dimension],
    rows: Dimension,
    columns: Dimension,
    reduction: Dimension,
    dtype: str = "float32",
) -> Tile:
    """The register tile of `[*batch, rows, reduction] x [*batch, reduction, columns]`."""
    count = 1
    for size in batch:
        count *= extent(size) or 1
    return contraction_tile(
        target, [rows], columns, reduction, batch=count, dtype=dtype, row_bytes=4 * (extent(reduction) or 0)
    )


def matmul(
    a: te.Tensor,
    b: te.Tensor,
    *,
    tile: Tile,
    transpose_b: bool = False,
    accumulator: str | None = None,
    name: str = "matmul",
) -> te.Tensor:
    """`out[..., m, n] = sum_k a[..., m, k] * b[..., k, n]` (`b[..., n, k]` where `transpose_b`).

    Leading dimensions broadcast as in NumPy (equal, or 1, or missing). Any extent may be symbolic.
    """
    dtype = accumulator or a.dtype
    rows, inner_extent = a.shape[-2], a.shape[-1]
    columns = b.shape[-2] if transpose_b else b.shape[-1]
    batch = broadcast_shape(a.shape[:-2], b.shape[:-2])
    packed = _packed(b, tile.block, columns, transpose_b, name)
    reach = ceil_to(rows, tile.rows[0])
    inner = te.reduce_axis((0, inner_extent), "k")

    def product(outer: Sequence[Expression], row: Sequence[Expression], column: Expression) -> Expression:
        left = a[(*aligned(outer, a.shape[:-2]), clamped(row[0], rows, reach), inner.var)]
        right = packed(aligned(outer, b.shape[:-2]), inner.var, column)
        return left.astype(dtype) * right.astype(dtype)

    acc = accumulate(batch, [rows], columns, [inner], product, tile, name=name)
    return te.compute((*batch, rows, columns), lambda *index: acc[index], name=name)


def broadcast_shape(left: Sequence[Dimension], right: Sequence[Dimension]) -> list[Dimension]:
    """The common shape of two lists of leading dimensions."""
    rank = max(len(left), len(right))
    first = [1] * (rank - len(left)) + list(left)
    second = [1] * (rank - len(right)) + list(right)
    return [b if extent(a) == 1 else a for a, b in zip(first, second, strict=True)]


def aligned(index: Sequence[Expression], shape: Sequence[Dimension]) -> list[Expression]:
    """The part of a broadcast index that belongs to a tensor with these leading dimensions."""
    own = index[len(index) - len(shape) :]
    return [0 if extent(size) == 1 else value for value, size in zip(own, shape, strict=True)]


def _packed(b: te.Tensor, block: int, columns: Dimension, transposed: bool, name: str) -> Reader:
    """Reads the right-hand side at (batch index, k, column): a copy in blocks, unless it serves as it is."""
    known = extent(columns)
    if not transposed and known is not None and known % block == 0:
        return lambda outer, k, column: b[(*outer, k, column)]
    lead = b.shape[:-2]
    inner = b.shape[-1] if transposed else b.shape[-2]
    blocks = floordiv(columns + (block - 1), block)

    def element(*index: Expression) -> Expression:
        outer, part, k, lane = index[:-3], index[-3], index[-2], index[-1]
        column = part * block + lane
        held = clamped(column, columns, ceil_to(columns, block))
        return b[(*outer, held, k)] if transposed else b[(*outer, k, held)]

    copy = te.compute((*lead, blocks, inner, block), element, name=f"{name}_pack", attrs=roles.stage())
    return lambda outer, k, column: copy[(*outer, tirx.floordiv(column, block), k, tirx.floormod(column, block))]
