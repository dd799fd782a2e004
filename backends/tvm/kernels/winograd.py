"""3x3 convolutions of stride 1 by Winograd's minimal filtering: fewer multiplications for more additions.

Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A turns a tile of m x m outputs into (m + 2)² products, each of which is a matrix
product over the channels: 2.25 times fewer multiplications with m = 2, four times fewer with m = 4, for weights that
are 16/9 and 4 times as large (Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016). The
transforms go one axis at a time. Sums round otherwise than in the direct form, with m = 4 about ten times more
(numerics: R3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tvm import te, tirx

from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.contraction import accumulate
from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.kernels.expressions import Dimension, Expression, extent
from whet.backends.tvm.kernels.tiles import Tile, contraction_tile
from whet.backends.tvm.kernels.windows import Window, ceil_to, clamped, padded_input

Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Transform:
    """The matrices for tiles of `outputs` by `outputs` elements, a row a result.

    Attributes:
        outputs: m.
        input: Bᵀ, [m + 2, m + 2].
        filter: G, [m + 2, 3].
        output: Aᵀ, [m, m + 2].
    """

    outputs: int
    input: Matrix
    filter: Matrix
    output: Matrix

    @property
    def size(self) -> int:
        """Elements a tile reads along an axis: m + 2."""
        return len(self.input)


TRANSFORMS: Final[Mapping[str, Transform]] = {
    # interpolation at 0, 1, -1 and infinity
    "winograd-2x2": Transform(
        2,
        ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
        ((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    # at 0, 1, -1, 2, -2 and infinity
    "winograd-4x4": Transform(
        4,
        (
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
        (
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
}


def fits_winograd(geometry: Window, groups: int, shape: Sequence[Dimension], dtype: str) -> bool:
    """Whether the convolution has the form: 3x3, stride and dilation 1, one group, f32, known extents."""
    return (
        geometry.kernel == (3, 3)
        and geometry.stride == geometry.dilation == (1, 1)
        and groups == 1
        and dtype == "float32"
        and all(extent(size) is not None for size in shape)
    )


@dataclass(frozen=True)
class WinogradPlan:
    """What packing and expression must agree on: the transform and the register tile of the matrix products."""

    transform: Transform
    tile: Tile


def plan_winograd(
    target: CpuTarget, shape: Sequence[Dimension], out_channels: int, geometry: Window, algorithm: str
) -> WinogradPlan:
    """Choose the register tile for an input `[N, H, W, C]`."""
    transform = TRANSFORMS[algorithm]
    _, _, count = _tiles(shape, geometry, transform)
    channels = extent(shape[-1]) or 1
    return WinogradPlan(
        transform,
        contraction_tile(target, [count], out_channels, channels, batch=transform.size**2, row_bytes=4 * channels),
    )


def pack_winograd_weight(weight: torch.Tensor, plan: WinogradPlan) -> torch.Tensor:
    """`weight[O, I, 3, 3]` as `[(m + 2)², O / block, I, block]`: G g Gᵀ, computed in f64; filled with zeros."""
    matrix = torch.tensor(plan.transform.filter, dtype=torch.float64)
    transformed = torch.einsum("ai,bj,ocij->aboc", matrix, matrix, weight.double()).flatten(0, 1)
    points, outputs, inputs = transformed.shape
    block = plan.tile.block
    padded = transformed.new_zeros((points, -(-outputs // block) * block, inputs))
    padded[:, :outputs] = transformed
    return padded.reshape(points, -1, block, inputs).transpose(2, 3).to(weight.dtype).contiguous()


def winograd(
    x: te.Tensor, weight: te.Tensor, *, geometry: Window, out_channels: int, plan: WinogradPlan, name: str = "winograd"
) -> te.Tensor:
    """`out[N, H', W', O]` of `x[N, H, W, C]` and a weight that `pack_winograd_weight` packed for `plan`."""
    transform, block = plan.transform, plan.tile.block
    step, size = transform.outputs, transform.size
    height, width = geometry.output_extents(x.shape[1:-1])
    down, across, count = _tiles(x.shape, geometry, transform)
    images, channels = x.shape[0], x.shape[-1]
    source = padded_input(x, geometry, (down * step, across * step), None, f"{name}_pad")

    def rows(point: Expression, image: Expression, tile: Expression, column: Expression, c: Expression) -> Expression:
        return _combined(transform.input, point, lambda tap: source[image, tile * step + tap, column, c])

    half = te.compute((size, images, down, across * step + 2, channels), rows, name=f"{name}_rows", attrs=roles.stage())

    def columns(point: Expression, tile: Expression, c: Expression) -> Expression:
        image, place = tirx.floordiv(tile, down * across), tirx.floormod(tile, down * across)
        row, column = tirx.floordiv(place, across), tirx.floormod(place, across)
        first, second = tirx.floordiv(point, size), tirx.floormod(point, size)
        return _combined(transform.input, second, lambda tap: half[first, image, row, column * step + tap, c])

    data = te.compute((size * size, count, channels), columns, name=f"{name}_data", attrs=roles.stage())
    inner = te.reduce_axis((0, channels), "ic")
    reach = ceil_to(count, plan.tile.rows[0])

    def product(batch: Sequence[Expression], row: Sequence[Expression], column: Expression) -> Expression:
        factor = weight[batch[0], tirx.floordiv(column, block), inner.var, tirx.floormod(column, block)]
        return data[batch[0], clamped(row[0], count, reach), inner.var] * factor

    acc = accumulate([size * size], [count], out_channels, [inner], product, plan.tile, name=name)

    def gathered_rows(row: Expression, point: Expression, tile: Expression, o: Expression) -> Expression:
        return _combined(transform.output, row, lambda tap: acc[tap * size + point, tile, o])

    folded = te.compute((step, size, count, out_channels), gathered_rows, name=f"{name}_folded", attrs=roles.stage())

    def element(image: Expression, h: Expression, w: Expression, o: Expression) -> Expression:
        tile = (image * down + tirx.floordiv(h, step)) * across + tirx.floordiv(w, step)
        row, column = tirx.floormod(h, step), tirx.floormod(w, step)
        return _combined(transform.output, column, lambda tap: folded[row, tap, tile, o])

    return te.compute((images, height, width, out_channels), element, name=name)


def _tiles(shape: Sequence[Dimension], geometry: Window, transform: Transform) -> tuple[int, int, int]:
    """Tiles down and across a picture, and in all pictures."""
    height, width = (extent(size) or 0 for size in geometry.output_extents(shape[1:-1]))
    down, across = -(-height // transform.outputs), -(-width // transform.outputs)
    return down, across, (extent(shape[0]) or 0) * down * across


def _combined(matrix: Matrix, row: Expression, term: Callable[[int], Expression]) -> Expression:
    """Row `row` of `matrix` times the terms; which row is known where the loop over rows is, outside of the vectors."""
    result = _row(matrix[-1], term)
    for index in range(len(matrix) - 2, -1, -1):
        result = tirx.if_then_else(tirx.EQ(row, index), _row(matrix[index], term), result)
    return result


def _row(factors: Sequence[float], term: Callable[[int], Expression]) -> Expression:
    total: Expression = None
    for tap, factor in enumerate(factors):
        if factor == 0:
            continue
        item = term(tap)
        item = item if factor == 1 else item * tirx.const(float(factor), "float32")
        total = item if total is None else total + item
    return total
