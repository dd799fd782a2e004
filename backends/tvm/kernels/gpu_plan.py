"""How a contraction is shared between a GPU's blocks, warps and threads: tiles as data, and a model that ranks them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from whet.backends.tvm.intrinsics.dp4a import GROUP, has_dp4a
from whet.backends.tvm.intrinsics.warp_matrix import WARP_INSTRUCTIONS, WarpInstruction
from whet.backends.tvm.kernels.expressions import Dimension, element_bytes, extent

SHARED_BYTES: Final = 48 * 1024
"""Shared memory that every block may declare."""
VECTOR_BYTES: Final = 16
"""The widest load of one thread."""
_BUSY_BLOCKS: Final = 96
"""Blocks that keep a device of middle size busy: it has about so many multiprocessors."""
_FEWEST_ROWS: Final = 8
"""Rows below which a product is read of weights: there is nothing for a tile to use twice."""
_SMALLEST_TILE: Final = 16


@dataclass(frozen=True)
class BlockTile:
    """What one block of threads computes.

    Attributes:
        rows, columns: of sums.
        depth: how many products of each sum are in shared memory at a time, in bytes of an operand.
        across: how the tile is shared: (warps down, warps across), or (threads down, threads across).
    """

    rows: int
    columns: int
    depth: int
    across: tuple[int, int]


WARP_TILES: Final = (
    BlockTile(128, 128, 64, (2, 4)),
    BlockTile(128, 64, 64, (2, 2)),
    BlockTile(64, 128, 64, (2, 2)),
    BlockTile(64, 64, 64, (2, 2)),
    BlockTile(32, 128, 64, (1, 4)),
    BlockTile(32, 64, 64, (1, 4)),
    BlockTile(64, 32, 64, (4, 1)),
    BlockTile(64, 16, 64, (4, 1)),
    BlockTile(16, 64, 64, (1, 4)),
    BlockTile(32, 32, 64, (2, 2)),
    BlockTile(16, 32, 64, (1, 2)),
    BlockTile(16, 16, 64, (1, 1)),
)
"""For tensor cores: each warp has a part of whole 16 x 16 steps. The last one fits every product."""
THREAD_TILES: Final = (
    BlockTile(128, 128, 32, (16, 16)),
    BlockTile(64, 64, 64, (16, 16)),
    BlockTile(64, 32, 64, (16, 8)),
    BlockTile(32, 64, 64, (8, 16)),
    BlockTile(32, 32, 64, (8, 8)),
    BlockTile(16, 32, 64, (4, 8)),
)
"""For multiply-and-add and dp4a: each thread has a part of 4 x 4 or 8 x 8."""


@dataclass(frozen=True)
class Declined:
    """A plan that does not fit, and why: `reason` is one of the texts in this module."""

    plan: str
    reason: str

    def __str__(self) -> str:
        return f"{self.plan}: {self.reason}"


@dataclass(frozen=True)
class Product:
    """A contraction as matrices: sums[group, row, column] over `inner` products.

    Attributes:
        groups, rows, columns, inner: its sizes; `rows` and `groups` may be symbolic.
        activation, weight, accumulator: TVM's types of the operands and the sums.
        runs: how many elements of a, and of b, lie side by side in memory along the contracted dimension, at least;
            0: all of them.
        grouped: whether groups and columns are one dimension of the result, which whole tiles must then fill.
        by_lines: whether neighbours in memory are elements of neighbouring rows of a, and columns of b, instead.
    """

    groups: Dimension
    rows: Dimension
    columns: Dimension
    inner: Dimension
    activation: str
    weight: str
    accumulator: str
    runs: tuple[int, int]
    by_lines: tuple[bool, bool] = (False, False)
    grouped: bool = False


@dataclass(frozen=True)
class GpuPlan:
    """A tile for a product, and why the plans before this one do not fit.

    Attributes:
        tile: with its depth in elements.
        instruction: of the tensor core; None: threads multiply.
        grouped: products of one instruction of a thread (4: dp4a, 1: multiply-and-add).
        vectors: elements of a, and of b, that a thread copies at once: few where it turns them.
        declined: the plans that were tried before.
    """

    tile: BlockTile
    instruction: WarpInstruction | None
    grouped: int
    vectors: tuple[int, ...]
    declined: tuple[Declined, ...]


def capability_of(target: Any) -> int:
    """Compute capability of a CUDA target as one number: 80 for "sm_80"."""
    return int("".join(filter(str.isdigit, target.device_arch)))


def plan_product(target: Any, product: Product) -> GpuPlan | tuple[Declined, ...]:
    """The first plan that fits: tensor cores, then tiles of threads; else the reasons why there is none."""
    declined: list[Declined] = []
    for name, plan in _PLANS:
        found = plan(target, product)
        if not isinstance(found, str):
            tile, instruction, grouped = found
            types = (product.activation, product.weight)
            widest = VECTOR_BYTES if instruction is not None else GROUP
            vectors = tuple(
                math.gcd(_vector(dtype, run, tile.depth), widest)
                for dtype, run in zip(types, product.runs, strict=True)
            )
            return GpuPlan(tile, instruction, grouped, vectors, tuple(declined))
        declined.append(Declined(name, found))
    return tuple(declined)


_Found = tuple[BlockTile, WarpInstruction | None, int]


def _common(product: Product) -> str | None:
    rows, columns, inner = (extent(size) for size in (product.rows, product.columns, product.inner))
    if columns is None or inner is None:
        return "the weight has a symbolic dimension"
    if rows is not None and rows < _FEWEST_ROWS:
        return f"{rows} rows are too few for a tile"
    if columns < _SMALLEST_TILE // 2:
        return f"{columns} columns are too few for a tile"
    return None


def _tensor_core(target: Any, product: Product) -> _Found | str:
    instruction = WARP_INSTRUCTIONS.get((product.activation, product.weight))
    if instruction is None or instruction.accumulator != product.accumulator:
        return f"no tensor core multiplies {product.activation} by {product.weight} into {product.accumulator}"
    capability = capability_of(target)
    if instruction.steps_for(capability) is None:
        return f"sm_{capability} has no tensor core for {product.activation}"
    common = _common(product)
    if common is not None:
        return common
    inner = extent(product.inner)
    assert inner is not None
    if inner < instruction.depth // 2:
        return f"sums of {inner} products are shorter than an instruction"
    tiles = [tile for tile in _fitting(WARP_TILES, product) if _all_work(tile, product)]
    return (_best(tiles, product), instruction, 1) if tiles else _no_tile(product)


def _thread_tiles(target: Any, product: Product) -> _Found | str:
    common = _common(product)
    if common is not None:
        return common
    inner = extent(product.inner)
    assert inner is not None
    if inner < 2 * GROUP:
        return f"sums of {inner} products are too short for shared memory"
    grouped = GROUP if has_dp4a(product.activation, product.weight) else 1
    tiles = _fitting(THREAD_TILES, product)
    return (_best(tiles, product), None, grouped) if tiles else _no_tile(product)


_PLANS = (("tensor_core", _tensor_core), ("thread_tiles", _thread_tiles))


def _fitting(tiles: Sequence[BlockTile], product: Product) -> list[BlockTile]:
    """The tiles that may be cut: where a column is a remainder by a group's columns, TVM cannot tell cut ones apart."""
    return [tile for tile in tiles if not product.grouped or (extent(product.columns) or 1) % tile.columns == 0]


def _no_tile(product: Product) -> str:
    return f"{product.columns} columns of each group fill no whole tiles"


def _all_work(tile: BlockTile, product: Product) -> bool:
    """Whether a product of one block leaves no warp without any sum: TVM cannot write what such a warp leaves out."""
    sizes = ((product.rows, tile.rows, tile.across[0]), (product.columns, tile.columns, tile.across[1]))
    return all((extent(size) or step) > step - step // warps for size, step, warps in sizes)


def _best(tiles: Sequence[BlockTile], product: Product) -> BlockTile:
    """The tile of least estimated time, its depth in elements of the wider operand."""
    width = max(element_bytes(product.activation), element_bytes(product.weight))
    depths = [_in_elements(tile, width) for tile in tiles]
    return min(depths, key=lambda tile: _cost(tile, product))


def _in_elements(tile: BlockTile, width: int) -> BlockTile:
    return BlockTile(tile.rows, tile.columns, tile.depth // width, tile.across)


def _cost(tile: BlockTile, product: Product) -> float:
    """Padded work, more for small tiles (they read each operand more often) and where blocks leave cores idle."""
    rows, columns = extent(product.rows) or 4096, extent(product.columns) or 1
    groups = extent(product.groups) or 1
    down, across = math.ceil(rows / tile.rows), math.ceil(columns / tile.columns)
    blocks = down * across * groups
    work = down * tile.rows * across * tile.columns
    return work * (1 + 32 / tile.rows + 32 / tile.columns) * max(1.0, _BUSY_BLOCKS / blocks)


def _vector(dtype: str, run: int, depth: int) -> int:
    """The most elements, up to 16 bytes, that divide a run and the tile."""
    width = VECTOR_BYTES // element_bytes(dtype)
    return math.gcd(width, run, depth)
