"""Depthwise convolutions: a row of outputs by a block of channels, all taps of the window unrolled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm
from tvm import tirx

from whet.backends.tvm.intrinsics.dot_product import register_by_name
from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.cpu import CpuTarget, lanes
from whet.backends.tvm.schedule.blocks import (
    BlockHandle,
    Schedule,
    anchors,
    annotation,
    loop_extent,
    output_blocks,
    static_product,
)
from whet.backends.tvm.schedule.tiled import (
    MULTIPLY_ADDS_PER_CYCLE,
    fuse_epilogue,
    initialize,
    keep_in_registers,
    open_anchor,
    parallel,
    schedule_producers,
    tile_anchor,
)

# Taps times accumulators that are still written out one by one: beyond, code size costs more than the loop.
_MOST_UNROLLED = 512
_TASKS_PER_CORE = 4


@dataclass(frozen=True)
class Depthwise:
    """Rule for functions with one depthwise anchor and one element-wise output."""

    name: str = "depthwise"

    def apply(self, func: tirx.PrimFunc, target: CpuTarget) -> tvm.s_tir.Schedule | None:
        """See `Rule`."""
        sch = open_anchor(func, roles.DEPTHWISE)
        if sch is None:
            return None
        anchor, final = anchors(sch, roles.DEPTHWISE)[0], output_blocks(sch)[0]
        schedule_producers(sch, anchor, final, target)
        schedule_depthwise(sch, anchor, final, target)
        return sch


def schedule_depthwise(sch: Schedule, anchor: BlockHandle, final: BlockHandle | None, target: CpuTarget) -> None:
    """Tile a depthwise convolution with the block behind it, or (None) on its own."""
    nest = tile_anchor(sch, anchor, target)
    outer = [*nest.batch, *nest.row_outer, nest.column_outer]
    sch.reorder(*outer, *nest.reduction, *nest.row_inner, nest.vectors, nest.vector)
    intrinsic = annotation(sch, anchor, roles.INTRINSIC)
    keep_in_registers(sch, nest, vectorized=intrinsic is None)
    tile = math.prod(loop_extent(sch, loop) or 1 for loop in (*nest.row_inner, nest.vectors))
    taps = static_product([loop_extent(sch, loop) for loop in nest.reduction])
    if taps is not None and taps * tile <= _MOST_UNROLLED:
        for loop in nest.reduction:
            sch.unroll(loop)
    fuse_epilogue(sch, anchor, final, nest.column_outer, target)
    coarse = outer[: -2 if len(nest.row_outer) > 1 else -1]
    tasks = static_product([loop_extent(sch, loop) for loop in coarse])
    dealt = outer if tasks is not None and tasks < _TASKS_PER_CORE * target.num_cores else coarse
    parallel(sch, dealt, anchor, MULTIPLY_ADDS_PER_CYCLE * lanes(target))
    initialize(sch, anchor, nest)
    if intrinsic is not None:
        sch.tensorize(nest.vector, register_by_name(str(intrinsic)))
