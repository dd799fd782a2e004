"""Contractions: a register tile under a broadcast-multiply-add loop, the epilogue on the same tile."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import tirx

from whet.backends.tvm.intrinsics.dot_product import register_by_name
from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.schedule.blocks import BlockHandle, Schedule, anchors, annotation, output_blocks
from whet.backends.tvm.schedule.tiled import (
    fuse_epilogue,
    initialize,
    keep_in_registers,
    open_anchor,
    parallel,
    schedule_producers,
    tile_anchor,
)


@dataclass(frozen=True)
class Contraction:
    """Rule for functions with one contraction anchor and one element-wise output."""

    name: str = "contraction"

    def apply(self, func: tirx.PrimFunc, target: CpuTarget) -> tvm.s_tir.Schedule | None:
        """See `Rule`."""
        sch = open_anchor(func, roles.CONTRACTION)
        if sch is None:
            return None
        anchor, final = anchors(sch, roles.CONTRACTION)[0], output_blocks(sch)[0]
        schedule_producers(sch, anchor, final, target)
        schedule_contraction(sch, anchor, final, target)
        return sch


def schedule_contraction(sch: Schedule, anchor: BlockHandle, final: BlockHandle | None, target: CpuTarget) -> None:
    """Tile a contraction with the block behind it, or (None) on its own: its sums are then written as they are."""
    nest = tile_anchor(sch, anchor, target)
    # Blocks of columns outside rows: a core then works through few weights, which stay in its cache.
    outer = [*nest.batch, nest.column_outer, *nest.row_outer]
    intrinsic = annotation(sch, anchor, roles.INTRINSIC)
    steps, products = nest.reduction, []
    if intrinsic is not None:
        steps, products = nest.reduction[:-1], nest.reduction[-1:]
    sch.reorder(*outer, *steps, *nest.row_inner, nest.vectors, nest.vector, *products)
    keep_in_registers(sch, nest, vectorized=intrinsic is None)
    fuse_epilogue(sch, anchor, final, outer[-1], target)
    parallel(sch, outer[:-1] if len(nest.row_outer) > 1 else outer)
    initialize(sch, anchor, nest)
    if intrinsic is not None:
        sch.tensorize(nest.vector, register_by_name(str(intrinsic)))
