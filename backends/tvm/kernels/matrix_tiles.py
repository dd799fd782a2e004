"""The registers of a matrix unit that a contraction works on: how many sums, how deep one multiplication.

A step of the reduction loads `down` registers of activations and `across` of weights for `down * across`
multiplications. A multiplication takes the same time however few rows or columns its registers have, so that the
tile with the fewest steps wins; rows past the end of a tensor cost a copy of the activations, which then have them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from whet.backends.tvm.intrinsics.instructions import MATRIX_ROW_BYTES, MATRIX_ROWS, DotInstruction, MatrixTile
from whet.backends.tvm.intrinsics.matrix_unit import fits_registers
from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.kernels.dot_plan import rounded_up
from whet.backends.tvm.kernels.expressions import element_bytes
from whet.backends.tvm.kernels.tiles import Tile, chosen_tile

# Cycles, measured on a Sapphire Rapids: a multiplication, a load of a register out of L1, the epilogue of a row and of
# each 16 sums in it (a line of memory is best written at once), what a tile costs besides; bytes that a copy moves in a
# cycle.
_MULTIPLY = 16.0
_LOAD = 12.0
# A load of weights out of L1, L2 and what is behind them.
_WEIGHT_LOADS = (12.0, 20.0, 96.0)
_WEIGHT_SHARE = 0.75
_EPILOGUE_ROW = 12.0
_EPILOGUE = 4.0
_OVERHEAD = 150.0
_COPY_BYTES = 8.0
_COPY_WIDTH = 16
_MOST_DOWN = 6
_MOST_ACROSS = 4
# Fewer bytes of channels a tap leave most of a register empty: dot instructions are as fast.
_LEAST_BYTES = 16
_LEAST_ROWS = 8


@dataclass(frozen=True)
class View:
    """One way to see a contraction.

    Attributes:
        rows: extents of the axes that rows are taken from.
        channels: terms of the sum for one tap.
        taps: of the kernel.
        copied: whether its activations are copied in any case.
        spread: how many times as many bytes as the rows and channels say a copy moves.
        unrolled: whether the taps of the last spatial axis are channels.
    """

    rows: tuple[int, ...]
    channels: int
    taps: int = 1
    copied: bool = False
    spread: float = 1.0
    unrolled: bool = False


def depth_of(channels: int, instruction: DotInstruction) -> tuple[int, int]:
    """Numbers of K in a row of a register, and the channels rounded up to whole ones.

    As few steps as a whole row would take, or up to twice as many where the channels then need no padding.
    """
    most = MATRIX_ROW_BYTES // element_bytes(instruction.activation)
    fewest = -(-channels // most)
    for steps in range(fewest, 2 * fewest + 1):
        if channels % (steps * instruction.group) == 0:
            return channels // steps, channels
    # They are copied in any case: in whole vectors.
    depth = rounded_up(-(-channels // fewest), _COPY_WIDTH // element_bytes(instruction.activation))
    return depth, depth * fewest


def worthwhile(rows: int, channels: int, instruction: DotInstruction) -> bool:
    """Whether a contraction has rows and channels enough to fill registers."""
    return rows >= _LEAST_ROWS and channels * element_bytes(instruction.activation) >= _LEAST_BYTES


def matrix_tile(
    target: CpuTarget, views: Sequence[View], columns: int, instruction: DotInstruction, *, batch: int = 1
) -> tuple[Tile, View]:
    """The tile with the least modelled time in any of the views; `matrix_of` reads it."""
    found: list[tuple[float, Tile, View]] = []
    for view in views:
        depth, grown = depth_of(view.channels, instruction)
        steps = view.taps * grown // depth
        for rows in _row_tiles(view.rows):
            reached = [rounded_up(size, step) for size, step in zip(view.rows, rows, strict=True)]
            copied = view.copied or grown != view.channels or reached != list(view.rows)
            moved = batch * math.prod(reached) * grown * element_bytes(instruction.activation) * view.spread
            copy = copied * moved / _COPY_BYTES / target.num_cores
            count = max(1, batch) * math.prod(size // step for size, step in zip(reached, rows, strict=True))
            for across in range(1, min(_MOST_ACROSS, -(-columns // instruction.columns)) + 1):
                tile = Tile(rows, across * instruction.columns)
                matrix = matrix_of(tile, depth, instruction)
                if not fits_registers(matrix):
                    continue
                tiles = count * -(-columns // tile.block)
                cost = -(-tiles // target.num_cores) * _tile_cycles(target, matrix, steps)
                found.append((round(cost + copy, 6), tile, view))
    ranked = sorted(found, key=lambda item: item[0])
    chosen = chosen_tile(target, [tile for _, tile, _ in ranked])
    return next((tile, view) for _, tile, view in ranked if tile == chosen)


def matrix_of(tile: Tile, depth: int, instruction: DotInstruction) -> MatrixTile:
    """The registers that a tile of rows and columns means.

    Rows of two axes are a register each; those of one fill as few registers as they can.
    """
    *_, last = tile.rows
    planes = math.prod(tile.rows[:-1])
    down = planes if planes > 1 else -(-last // MATRIX_ROWS)
    return MatrixTile(math.prod(tile.rows) // down, depth, down, tile.block // instruction.columns)


def _tile_cycles(target: CpuTarget, matrix: MatrixTile, steps: int) -> float:
    sums = matrix.down * matrix.across
    # All tiles of rows read one panel of weights, one after the other.
    panel = steps * matrix.across * MATRIX_ROWS * MATRIX_ROW_BYTES
    level = sum(panel > _WEIGHT_SHARE * size for size in (target.l1_cache_bytes, target.l2_cache_bytes))
    loads = matrix.down * _LOAD + matrix.across * _WEIGHT_LOADS[level]
    epilogue = matrix.rows * matrix.down * (_EPILOGUE_ROW + matrix.across * _EPILOGUE)
    return steps * (sums * _MULTIPLY + loads) + epilogue + _OVERHEAD


def _row_tiles(extents: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Tiles of the last axis, and of the last two with one register for each row of the outer one of them."""
    lead, last = (1,) * (len(extents) - 1), extents[-1]
    for down in range(1, _MOST_DOWN + 1):
        for rows in range(MATRIX_ROWS, 0, -1):
            # as few registers as hold so many rows, and none that is empty
            if -(-down * rows // MATRIX_ROWS) == down and down * rows < last + rows:
                yield (*lead, down * rows)
    if len(extents) < 2:
        return
    for down in range(2, min(_MOST_DOWN, extents[-2]) + 1):
        for rows in range(min(MATRIX_ROWS, last), 0, -1):
            yield (*lead[:-1], down, rows)
