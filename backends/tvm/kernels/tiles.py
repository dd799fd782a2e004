"""The register tile of a contraction: how many rows by how many columns of accumulators.

The model is the inner loop of a broadcast-FMA microkernel: each step of the reduction loads `columns` vectors
of weights, broadcasts `rows` activations and issues `rows * columns` multiply-adds. A step costs the slowest
of the two arithmetic ports, the two load ports, the latency of the accumulation chain and the stream of
weights out of the cache that holds one panel of them. A whole kernel costs its tiles, dealt to the cores in
equal shares.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from whet.backends.tvm.kernels.cpu import CpuTarget, lanes, operand_registers
from whet.backends.tvm.kernels.expressions import Dimension, extent

# Bytes of weights a core reads in one cycle out of L1, L2 and what is behind them: conservative figures for
# the cores of the last ten years; only their ratios matter here. Weights get a part of each cache,
# activations the rest.
_BYTES_PER_CYCLE = (64.0, 16.0, 8.0)
_WEIGHT_SHARE = 0.75
_FMA_PORTS = 2
_LOAD_PORTS = 2
_CHAIN_CYCLES = 4.0
# All L1 caches in question have ways of 4 KiB and at least 8 of them (Cortex-A: 4, of 8 or 16 KiB each).
_L1_WAYS = 8
_L1_WAY_BYTES = 4096
_MISS_PENALTY = 3.0
# Rows that a symbolic extent is taken to have: long enough for full tiles, short enough for batch 1 to pay
# little.
_SYMBOLIC_ROWS = 64
_SYMBOLIC_TILE = 8


@dataclass(frozen=True)
class Tile:
    """Register tile: `rows` per row axis (the innermost last), `block` packed columns, in elements."""

    rows: tuple[int, ...]
    block: int


def contraction_tile(
    target: CpuTarget,
    rows: Sequence[Dimension],
    columns: Dimension,
    reduction: Dimension,
    batch: int = 1,
    *,
    dtype: str = "float32",
    exact_block: bool = False,
    row_bytes: int = 0,
    spread: float = 0.0,
) -> Tile:
    """The tile with the least modelled time for `rows x columns` sums of `dtype` over `reduction` steps.

    `rows` are the row extents (one for a matmul, the spatial ones for a convolution: only the last two are
    tiled); symbolic ones count as a moderate extent. `exact_block` allows only blocks that divide `columns`,
    for weights whose columns cannot be padded (grouped convolution). `row_bytes` is the distance of neighbouring
    rows in memory (0: unknown). `spread` multiply-adds' time goes into each activation of a step, to bring it into all
    lanes. A target that comes with decisions (`kernels.decisions`) chooses among all of them.
    """
    width = lanes(target, dtype)
    fixed = [extent(row) for row in rows]
    known_columns = extent(columns)
    steps = extent(reduction) or 512
    found: list[tuple[float, Tile]] = []
    for block in _blocks(target, width, known_columns, exact_block):
        vectors = -(-block // width)
        column_tiles = -(-(known_columns or 4 * block) // block)
        budget = max(1, (target.registers - vectors - operand_registers(target)) // vectors)
        for tile_rows in _row_tiles(fixed, budget):
            row_tiles = math.prod(
                -(-(row or _SYMBOLIC_ROWS) // step) for row, step in zip(fixed, tile_rows, strict=True)
            )
            count = math.prod(tile_rows)
            tiles = max(1, batch) * row_tiles * column_tiles
            shares = -(-tiles // target.num_cores)
            cost = shares * _tile_cycles(target, count, vectors, steps, 4 * block, spread)
            if count > _rows_in_cache(row_bytes):
                cost *= _MISS_PENALTY
            found.append((round(cost, 6), Tile(tile_rows, block)))
    # a stable sort: among equals the one that comes first, as whole row tiles do
    return chosen_tile(target, [tile for _, tile in sorted(found, key=lambda item: item[0])])


def chosen_tile(target: CpuTarget, ranked: Sequence[Tile]) -> Tile:
    """The tile that a target with decisions chooses, else the first of `ranked`."""
    choose: Callable[[Sequence[Tile]], Tile] | None = getattr(target, "choose", None)
    return ranked[0] if choose is None else choose(ranked)


def _tile_cycles(target: CpuTarget, rows: int, vectors: int, steps: int, column_bytes: int, spread: float) -> float:
    """Modelled cycles of one tile: the loop over the reduction and the write-back of its accumulators.

    `column_bytes` are the weights of one step: 4 bytes a column, for four 8-bit ones as for one float32.
    """
    panel = steps * column_bytes
    level = sum(panel > _WEIGHT_SHARE * size for size in (target.l1_cache_bytes, target.l2_cache_bytes))
    bandwidth = _BYTES_PER_CYCLE[level]
    step = max(
        rows * (vectors + spread) / _FMA_PORTS,
        (rows + vectors) / _LOAD_PORTS,
        _CHAIN_CYCLES,
        column_bytes / bandwidth,
    )
    return steps * step + 2.0 * rows * vectors + 20.0


def _rows_in_cache(row_bytes: int) -> int:
    """How many rows at this distance L1 holds a line of: at a multiple of its way size they share one set."""
    if row_bytes == 0:
        return _L1_WAYS * _L1_WAY_BYTES
    return _L1_WAYS * (_L1_WAY_BYTES // math.gcd(row_bytes, _L1_WAY_BYTES))


def _blocks(target: CpuTarget, width: int, columns: int | None, exact: bool) -> list[int]:
    """Candidate column blocks: whole vectors, or the divisors of `columns` that come nearest to them."""
    most = 4 if target.registers > 16 else 3
    if not exact or columns is None:
        return [
            width * count
            for count in range(1, most + 1)
            if columns is None or count == 1 or width * (count - 1) < columns
        ]
    limit = width * most
    divisors = [size for size in range(1, min(columns, limit) + 1) if columns % size == 0]
    whole = [size for size in divisors if size % width == 0]
    return whole or [divisors[-1]]


def _row_tiles(rows: Sequence[int | None], budget: int) -> Iterator[tuple[int, ...]]:
    """Every tile of at most `budget` rows; a symbolic axis gets a fixed step, all but the last two get 1."""
    choices = [[1] if axis < len(rows) - 2 else _axis_steps(row, budget) for axis, row in enumerate(rows)]
    for candidate in itertools.product(*reversed(choices)):
        tile = tuple(reversed(candidate))
        if math.prod(tile) <= budget:
            yield tile


def _axis_steps(row: int | None, budget: int) -> list[int]:
    if row is None:
        return [min(_SYMBOLIC_TILE, budget)]
    return list(range(min(row, budget), 0, -1))
