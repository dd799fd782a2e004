"""Contractions: a register tile of accumulators under a broadcast-multiply-add loop, the epilogue on the same tile."""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.s_tir.schedule import ScheduleError

from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.contraction import flatten_index
from whet.backends.tvm.kernels.cpu import CpuTarget, lanes
from whet.backends.tvm.schedule.blocks import (
    BlockHandle,
    LoopHandle,
    Schedule,
    all_blocks,
    anchors,
    annotation,
    block_name,
    integers,
    is_elementwise,
    iterator_counts,
    loop_extent,
    new_schedule,
    output_blocks,
)
from whet.backends.tvm.schedule.elementwise import inline_elementwise, schedule_elementwise


@dataclass(frozen=True)
class Contraction:
    """Rule for functions with one contraction anchor and one element-wise output."""

    name: str = "contraction"

    def apply(self, func: tirx.PrimFunc, target: CpuTarget) -> tvm.s_tir.Schedule | None:
        """See `Rule`."""
        sch = new_schedule(func)
        found = anchors(sch, roles.CONTRACTION)
        outputs = output_blocks(sch)
        if len(found) != 1 or len(outputs) != 1:
            return None
        inline_elementwise(sch, keep=outputs)
        sch = _in_anchor_space(sch)
        anchor, final = anchors(sch, roles.CONTRACTION)[0], output_blocks(sch)[0]
        if not is_elementwise(sch, final):
            return None
        nest = _tile_nest(sch, anchor, target)
        _fuse_epilogue(sch, anchor, final, nest, target)
        for block in all_blocks(sch):
            if sch.get_loops(block) and is_elementwise(sch, block) and _stands_alone(sch, block, anchor, final):
                schedule_elementwise(sch, block, target)
        sch.parallel(sch.fuse(*nest.outer))
        _initialize(sch, anchor, nest)
        return sch


@dataclass(frozen=True)
class _Nest:
    """Loops of the tiled anchor: `outer` to be parallel, `tile` the one a register tile hangs under."""

    outer: list[LoopHandle]
    tile: LoopHandle
    reduction: LoopHandle
    unrolled: int


def _in_anchor_space(sch: Schedule) -> Schedule:
    """Fold the axes of the output that one row axis of the anchor stands for, so that both have the same axes."""
    anchor, final = anchors(sch, roles.CONTRACTION)[0], output_blocks(sch)[0]
    folded = int(annotation(sch, anchor, roles.FLATTENED))  # type: ignore[call-overload]
    if folded <= 1:
        return sch
    iterators = list(sch.get(final).iter_vars)
    first = len(iterators) - 1 - folded
    spatial, _ = iterator_counts(sch, anchor)
    if first < 0 or len(iterators) - folded + 1 != spatial:
        raise ScheduleError("the epilogue has other axes than its anchor")
    shape = [iterator.dom.extent for iterator in iterators[first:-1]]

    def fold(*index: tirx.Var) -> list[object]:
        return [*index[:first], flatten_index(index[first:-1], shape), index[-1]]

    dtype = str(iterators[-1].var.ty.dtype)
    sch.transform_block_layout(final, tirx.IndexMap.from_func(fold, ndim=len(iterators), index_dtype=dtype))
    return new_schedule(sch.mod)


def _tile_nest(sch: Schedule, anchor: BlockHandle, target: CpuTarget) -> _Nest:
    rows = integers(sch, anchor, roles.ROWS)
    block = int(annotation(sch, anchor, roles.BLOCK))  # type: ignore[call-overload]
    spatial, _ = iterator_counts(sch, anchor)
    loops = list(sch.get_loops(anchor))
    batch, row_loops = loops[: spatial - 1 - len(rows)], loops[spatial - 1 - len(rows) : spatial - 1]
    column, reduction = loops[spatial - 1], loops[spatial:]
    width = _tile_lanes(sch, anchor, block, target)
    row_outer, row_inner = [], []
    for loop, step in zip(row_loops, rows, strict=True):
        head, tail = sch.split(loop, [None, step])
        row_outer.append(head)
        row_inner.append(tail)
    column_outer, vectors, vector = sch.split(column, [None, block // width, width])
    sch.reorder(*batch, column_outer, *row_outer, *reduction, *row_inner, vectors, vector)
    sch.vectorize(vector)
    for loop in (*row_inner, vectors):
        sch.unroll(loop)
    outer = [*batch, column_outer, *row_outer]
    return _Nest(outer[:-1] if len(row_outer) > 1 else outer, outer[-1], reduction[0], len(rows) + 1)


def _tile_lanes(sch: Schedule, anchor: BlockHandle, block: int, target: CpuTarget) -> int:
    """Elements of one accumulator vector: a whole register, or the whole block where that is no multiple of one."""
    width = lanes(target, str(sch.get(anchor).writes[0].source.dtype))
    return width if block % width == 0 else block


def _fuse_epilogue(
    sch: Schedule, anchor: BlockHandle, final: BlockHandle, nest: _Nest, target: CpuTarget
) -> None:
    sch.reverse_compute_at(final, nest.tile)
    sch.set_scope(anchor, 0, "local")
    loops = list(sch.get_loops(final))


    inner = loops[-1]
    size = loop_extent(sch, inner)
    width = lanes(target, str(sch.get(anchor).writes[0].source.dtype))
    columns = sch.get(final).iter_vars[-1].dom.extent
    known = int(columns) if isinstance(columns, tirx.IntImm) else width
    step = math.gcd(width, math.gcd(known, size or 1))
    tile_position = [str(sch.get(loop).loop_var) for loop in loops].index(str(sch.get(nest.tile).loop_var))
    rows = loops[tile_position + 1 : -1]
    if step > 1:
        vectors, vector = sch.split(inner, [None, step])
        sch.vectorize(vector)
    else:
        vectors = inner
    for loop in (*rows, vectors):
        sch.unroll(loop)


def _stands_alone(sch: Schedule, block: BlockHandle, anchor: BlockHandle, final: BlockHandle) -> bool:
    return block_name(sch, block) not in (block_name(sch, anchor), block_name(sch, final))


def _initialize(sch: Schedule, anchor: BlockHandle, nest: _Nest) -> None:
    """Zero the accumulators before the reduction, with the same unrolled and vectorized loops."""
    initial = sch.decompose_reduction(anchor, nest.reduction)
    loops = list(sch.get_loops(initial))
    sch.vectorize(loops[-1])
    for loop in loops[-1 - nest.unrolled : -1]:
        sch.unroll(loop)
