"""The accumulation that every contraction kernel shares: a padded, tiled sum of products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import te, tirx

from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.expressions import Dimension, Expression, extent
from whet.backends.tvm.kernels.tiles import Tile
from whet.backends.tvm.kernels.windows import ceil_to

Product = Callable[[Sequence[Expression], Sequence[Expression], Expression], Expression]


def accumulate(
    batch: Sequence[Dimension],
    rows: Sequence[Dimension],
    columns: Dimension,
    reduction: Sequence[tirx.IterVar],
    product: Product,
    tile: Tile,
    *,
    name: str,
    flattened: int = 1,
    dot: int = 1,
    intrinsic: str | None = None,
) -> te.Tensor:
    """`acc[*batch, *rows, column]`, rows and columns rounded up to whole tiles; the caller cuts it.

    `product(batch_index, row_index, column)` is one term of the sum and must be readable at every padded
    index.
    """
    lead, trail = len(batch), len(rows)
    shape = (
        *batch,
        *(ceil_to(row, step) for row, step in zip(rows, tile.rows, strict=True)),
        ceil_to(columns, tile.block),
    )

    def element(*index: Expression) -> Expression:
        return te.sum(
            product(index[:lead], index[lead : lead + trail], index[-1]),
            axis=list(reduction),
        )

    return te.compute(
        shape,
        element,
        name=f"{name}_acc",
        attrs=roles.contraction(tile.rows, tile.block, flattened, dot, intrinsic),
    )


def static_suffix(shape: Sequence[Dimension]) -> tuple[int, int]:
    """How many trailing dimensions of `shape` have a known extent, and the product of those."""
    count = 0
    for dimension in reversed(shape):
        if extent(dimension) is None:
            break
        count += 1
    return count, math.prod(extent(d) or 0 for d in shape[len(shape) - count :])


def flatten_index(index: Sequence[Expression], shape: Sequence[Dimension]) -> Expression:
    """Row-major position of `index` in `shape`; 0 for a scalar."""
    if not index:
        return 0
    position = index[0]
    for value, size in zip(index[1:], shape[1:], strict=True):
        position = position * size + value
    return position


def unflatten_index(position: Expression, shape: Sequence[Dimension]) -> list[Expression]:
    """Inverse of `flatten_index`."""
    index: list[Expression] = []
    for size in reversed(shape[1:]):
        index.append(tirx.floormod(position, size))
        position = tirx.floordiv(position, size)
    index.append(position)
    return index[::-1][: len(shape)] if shape else []
