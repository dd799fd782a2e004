"""Products by threads: tiles in shared memory, a part of a tile in each thread's registers; dp4a for bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx

from whet.backends.tvm.intrinsics.dp4a import dp4a
from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.expressions import element_bytes
from whet.backends.tvm.kernels.gpu_plan import VECTOR_BYTES
from whet.backends.tvm.schedule.blocks import BlockHandle, Schedule, can_vectorize, loop_extent
from whet.backends.tvm.schedule.gpu.product import Parts, copy_tile, open_product
from whet.backends.tvm.schedule.gpu.rule import BLOCK, ROW, THREAD


@dataclass(frozen=True)
class ThreadTiles:
    """Rule for functions with one product planned for tiles of threads."""

    name: str = roles.THREAD_TILES

    def apply(self, func: tirx.PrimFunc, target: Any) -> tvm.s_tir.Schedule:
        """See `GpuRule`."""
        sch, parts = open_product(func, roles.THREAD_TILES)
        rows, columns, depth = parts.tile
        down, across = parts.across
        sch.set_scope(parts.sums, 0, "local")
        group, i, j, k = sch.get_loops(parts.sums)
        i_block, i_thread, i_own = sch.split(i, [None, down, rows // down])
        j_block, j_thread, j_own = sch.split(j, [None, across, columns // across])
        k_tile, k_step, k_dot = sch.split(k, [None, depth // parts.grouped, parts.grouped])
        sch.reorder(group, i_block, j_block, i_thread, j_thread, k_tile, k_step, i_own, j_own, k_dot)
        sch.bind(sch.fuse(group, i_block, j_block), BLOCK)
        sch.bind(i_thread, ROW)
        sch.bind(j_thread, THREAD)
        sch.reverse_compute_at(parts.final, j_thread, preserve_unit_loops=True)
        for slot, operand in enumerate(parts.operands):
            _stage(sch, parts, slot, operand, k_tile, k_step)
        sch.decompose_reduction(parts.sums, k_tile)
        _write_vectors(sch, parts.final)
        if parts.grouped > 1:
            sch.tensorize(list(sch.get_loops(parts.sums))[-1], dp4a(parts.types[0], parts.types[1]))
        return sch


def _stage(sch: Schedule, parts: Parts, slot: int, operand: BlockHandle, k_tile: Any, k_step: Any) -> None:
    """Copy an operand's tile into shared memory, lines side by side, and from there a thread's lines to registers."""
    grouped, dtype = parts.grouped, parts.types[slot]

    def by_lines(group: Any, line: Any, k: Any) -> list[Any]:
        return [group, k // grouped, line, k % grouped]

    sch.set_scope(operand, 0, "shared")
    sch.compute_at(operand, k_tile, preserve_unit_loops=True)
    copy_tile(sch, operand, parts.vectors[slot], parts.across)
    sch.transform_layout(operand, ("write", 0), by_lines)
    own = sch.cache_read(parts.sums, slot, "local")
    sch.compute_at(own, k_step, preserve_unit_loops=True)
    line, dot = list(sch.get_loops(own))[-2:]
    if grouped > 1:
        sch.vectorize(dot)
        return
    lanes = math.gcd(loop_extent(sch, line) or 1, VECTOR_BYTES // element_bytes(dtype))
    if lanes > 1:
        _, vector = sch.split(line, [None, lanes])
        sch.reorder(dot, vector)
        sch.vectorize(vector)


def _write_vectors(sch: Schedule, final: BlockHandle) -> None:
    """Write a thread's neighbouring columns at once, where all of them are always there."""
    column = list(sch.get_loops(final))[-1]
    size, own = sch.get(final).iter_vars[-1].dom.extent, loop_extent(sch, column)
    if not isinstance(size, tirx.IntImm) or own is None:
        return
    lanes = math.gcd(own, int(size), 4)
    if lanes > 1 and can_vectorize(sch, column):
        _, vector = sch.split(column, [None, lanes])
        sch.vectorize(vector)
