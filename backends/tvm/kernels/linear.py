"""Linear layers: `x[..., K]` times a constant packed as `[N / block, K, block]`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tvm import te, tirx

from whet.backends.tvm.kernels.contraction import accumulate, flatten_index, static_suffix, unflatten_index
from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.kernels.expressions import Dimension, Expression, extent
from whet.backends.tvm.kernels.tiles import Tile, contraction_tile
from whet.backends.tvm.kernels.windows import ceil_to, clamped


def pack_linear_weight(weight: torch.Tensor, block: int) -> torch.Tensor:
    """`weight[N, K]` (torch's layout) as `[ceil(N / block), K, block]`, the last block filled with zeros."""
    rows, inner = weight.shape
    blocks = -(-rows // block)
    padded = weight.new_zeros((blocks * block, inner))
    padded[:rows] = weight
    return padded.reshape(blocks, block, inner).permute(0, 2, 1).contiguous()


def linear_tile(target: CpuTarget, shape: Sequence[Dimension], out_features: int, dtype: str = "float32") -> Tile:
    """The register tile for `x` of `shape [..., K]`; its block is the one to pack the weight with."""
    lead = shape[:-1]
    count, known = static_suffix(lead)
    rows = known if count or not lead else lead[-1]
    row_bytes = 4 * (extent(shape[-1]) or 0)
    return contraction_tile(target, [rows], out_features, shape[-1], dtype=dtype, row_bytes=row_bytes)


def linear(
    x: te.Tensor,
    weight: te.Tensor,
    *,
    out_features: int,
    tile: Tile,
    accumulator: str | None = None,
    name: str = "linear",
) -> te.Tensor:
    """`out[..., n] = sum_k x[..., k] * weight[n // block, k, n % block]`, in dtype `accumulator` (or x's).

    The known trailing dimensions of `x` are folded into one row axis; symbolic ones stay batch axes, unless
    the last of them is the only row axis there is. `weight` may have unit axes after the first (a pointwise
    convolution's).
    """
    dtype = accumulator or x.dtype
    lead = list(x.shape[:-1])
    count, rows = static_suffix(lead)
    folded = max(count, min(1, len(lead)))
    batch, tail = lead[: len(lead) - folded], lead[len(lead) - folded :]
    row_extent: Dimension = rows if count or not lead else tail[0]
    reach = ceil_to(row_extent, tile.rows[0])
    inner = te.reduce_axis((0, x.shape[-1]), "k")
    kernel = [0] * (len(weight.shape) - 3)

    def product(outer: Sequence[Expression], row: Sequence[Expression], column: Expression) -> Expression:
        position = clamped(row[0], row_extent, reach)
        source = unflatten_index(position, tail)
        block, lane = tirx.floordiv(column, tile.block), tirx.floormod(column, tile.block)
        factor = weight[(block, *kernel, inner.var, lane)]
        return x[(*outer, *source, inner.var)].astype(dtype) * factor.astype(dtype)

    acc = accumulate(batch, [row_extent], out_features, [inner], product, tile, name=name, flattened=max(1, folded))

    def element(*index: Expression) -> Expression:
        outer, row = index[: len(batch)], flatten_index(index[len(batch) : -1], tail)
        return acc[(*outer, row, index[-1])]

    return te.compute((*lead, out_features), element, name=name)
