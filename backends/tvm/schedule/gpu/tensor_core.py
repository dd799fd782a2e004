"""Products by tensor cores: tiles in shared memory, `ldmatrix` into registers, `mma.sync`, the rest in registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx

from whet.backends.tvm.intrinsics.warp_matrix import (
    LANES,
    SIDE,
    WARP_INSTRUCTIONS,
    WarpInstruction,
    column_place,
    load_columns,
    load_rows,
    multiply,
    row_place,
    sum_place,
)
from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.gpu_plan import capability_of
from whet.backends.tvm.schedule.blocks import BlockHandle, LoopHandle, Schedule, loop_extent
from whet.backends.tvm.schedule.gpu.product import copy_tile, open_product, overlap, runs_asynchronously, skew
from whet.backends.tvm.schedule.gpu.rule import BLOCK, ROW, THREAD

_PLACES = (row_place, column_place)


@dataclass(frozen=True)
class TensorCore:
    """Rule for functions with one product planned for tensor cores."""

    name: str = roles.TENSOR_CORE

    def apply(self, func: tirx.PrimFunc, target: Any) -> tvm.s_tir.Schedule:
        """See `GpuRule`."""
        sch, parts = open_product(func, roles.TENSOR_CORE)
        instruction = WARP_INSTRUCTIONS[parts.types[0], parts.types[1]]
        rows, columns, depth = parts.tile
        down, across = parts.across
        capability = capability_of(target)

        for operand in parts.operands:
            sch.set_scope(operand, 0, "shared")
        sch.set_scope(parts.sums, 0, "warp")
        group, i, j, k = sch.get_loops(parts.sums)
        i_block, i_warp, i_step, i_side = sch.split(i, [None, down, rows // down // SIDE, SIDE])
        j_block, j_warp, j_step, j_side = sch.split(j, [None, across, columns // across // SIDE, SIDE])
        k_tile, k_step, k_side = sch.split(k, [None, depth // instruction.depth, instruction.depth])
        sch.reorder(group, i_block, j_block, i_warp, j_warp, k_tile, k_step, i_step, j_step, i_side, j_side, k_side)
        block, warp = sch.fuse(group, i_block, j_block), sch.fuse(i_warp, j_warp)
        sch.bind(block, BLOCK)
        sch.bind(warp, ROW)
        sch.reverse_compute_at(parts.final, warp, preserve_unit_loops=True)

        asynchronous = runs_asynchronously(parts, capability, loop_extent(sch, k_tile))
        for slot, operand in enumerate(parts.operands):
            sch.compute_at(operand, k_tile, preserve_unit_loops=True)
            loaded = sch.cache_read(parts.sums, slot, "warp")
            sch.compute_at(loaded, k_step, preserve_unit_loops=True)
            copy_tile(sch, operand, parts.vectors[slot], (down * across, LANES))
            skew(sch, operand, depth, parts.types[slot])
            _load(sch, loaded, slot, instruction)
        sch.transform_layout(parts.sums, ("write", 0), _sums_layout)
        initial = sch.decompose_reduction(parts.sums, k_tile)
        _share_sums(sch, initial)
        vector = _share_sums(sch, parts.final, steps=True)
        if _even(sch, parts.final):
            sch.vectorize(vector)
        sch.tensorize(list(sch.get_loops(parts.sums))[-3], multiply(instruction, capability))
        if asynchronous:
            overlap(sch, k_tile)
        return sch


def _sums_layout(group: Any, row: Any, column: Any) -> list[Any]:
    return [group, row // SIDE, column // SIDE, *sum_place(row % SIDE, column % SIDE)]


def _load(sch: Schedule, loaded: BlockHandle, slot: int, instruction: WarpInstruction) -> None:
    """Load a step's operand as the instruction wants it."""
    place, depth = _PLACES[slot], instruction.depth

    def layout(group: Any, line: Any, k: Any) -> list[Any]:
        return [group, line // SIDE, k // depth, *place(line % SIDE, k % depth, depth)]

    sch.transform_layout(loaded, ("write", 0), layout)
    line, k = list(sch.get_loops(loaded))[-2:]
    line_step, line_side = sch.split(line, [None, SIDE])
    k_step, k_side = sch.split(k, [None, depth])
    sch.reorder(line_step, k_step, line_side, k_side)
    sch.tensorize(line_side, (load_rows, load_columns)[slot](instruction))


def _share_sums(sch: Schedule, block: BlockHandle, steps: bool = False) -> LoopHandle:
    """Let each thread work on the sums that its registers hold; the loop over its two neighbours comes back."""
    row, column = list(sch.get_loops(block))[-2:]
    if steps:
        row_step, row = sch.split(row, [None, SIDE])
        column_step, column = sch.split(column, [None, SIDE])
        sch.reorder(row_step, column_step, row, column)
    row_half, row_lane = sch.split(row, [2, 8])
    column_half, column_lane, pair = sch.split(column, [2, 4, 2])
    sch.reorder(column_half, row_half, row_lane, column_lane, pair)
    sch.bind(sch.fuse(row_lane, column_lane), THREAD)
    return pair


def _even(sch: Schedule, block: BlockHandle) -> bool:
    """Whether two columns side by side are always both there."""
    size = sch.get(block).iter_vars[-1].dom.extent
    return isinstance(size, tirx.IntImm) and int(size) % 2 == 0
