"""Reductions: vectors of accumulators, over columns where they are contiguous, else along the reduction."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.s_tir.schedule import ScheduleError

from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.schedule.blocks import (
    BlockHandle,
    LoopHandle,
    Schedule,
    block_name,
    is_elementwise,
    iterator_counts,
    loop_extent,
    static_product,
)
from whet.backends.tvm.schedule.elementwise import parallelize, vector_width, vectorize

# Vectors of accumulators kept in flight: enough to hide the latency of an addition.
_VECTORS_IN_FLIGHT = 4


# TVM's LoopPartition looks for this annotation.
_PEEL = "pragma_loop_partition_hint"


def schedule_reduction(sch: Schedule, block: BlockHandle, target: CpuTarget) -> None:
    """Schedule a reduction that stands alone under the root, with its element-wise consumer if it has one."""
    spatial_count, _ = iterator_counts(sch, block)
    loops = list(sch.get_loops(block))
    spatial, reduction = loops[:spatial_count], loops[spatial_count:]
    work = static_product([loop_extent(sch, loop) for loop in loops])
    if spatial and contiguous_axis(sch, block) == spatial_count - 1:
        _across_columns(sch, block, spatial, reduction, work, target)
        return
    partial = split_accumulators(sch, block, target)
    parallelize(sch, list(sch.get_loops(block))[:spatial_count], work)
    if partial is not None:
        parallelize(sch, list(sch.get_loops(partial))[:spatial_count], work)


def _across_columns(
    sch: Schedule,
    block: BlockHandle,
    spatial: list[LoopHandle],
    reduction: list[LoopHandle],
    work: int | None,
    target: CpuTarget,
) -> None:
    """Columns in vectors, the reduction around them, accumulators in registers."""
    width = vector_width(sch, block, target)
    column = spatial[-1]
    size = loop_extent(sch, column)
    step = width if size is not None and size % width == 0 else None
    outer = spatial[:-1]
    if step is None:
        sch.reorder(*outer, *reduction, column)
        parallelize(sch, outer, work)
        return
    vectors = step * (_VECTORS_IN_FLIGHT if size is not None and size % (step * _VECTORS_IN_FLIGHT) == 0 else 1)
    column_outer, column_inner, vector = sch.split(column, [None, vectors // step, step])
    sch.reorder(*outer, column_outer, *reduction, column_inner, vector)
    final = _lone_consumer(sch, block)
    if final is None:
        final = sch.cache_write(block, 0, "local")
    sch.reverse_compute_at(final, column_outer)
    if not _writes_output(sch, block):
        sch.set_scope(block, 0, "local")
    tail = list(sch.get_loops(final))[-1]
    vectorize(sch, tail, step)
    sch.vectorize(vector)
    sch.unroll(column_inner)
    parallelize(sch, [*outer, column_outer], work)
    initial = sch.decompose_reduction(block, reduction[0])
    sch.vectorize(list(sch.get_loops(initial))[-1])


def _lone_consumer(sch: Schedule, block: BlockHandle) -> BlockHandle | None:
    """The block's one consumer, if it is element-wise over the same axes."""
    consumers = list(sch.get_consumers(block))
    if len(consumers) != 1 or not is_elementwise(sch, consumers[0]):
        return None
    spatial, _ = iterator_counts(sch, block)
    return consumers[0] if len(sch.get(consumers[0]).iter_vars) == spatial else None


def _writes_output(sch: Schedule, block: BlockHandle) -> bool:
    outputs = {block_name(sch, output) for output in sch.get_output_blocks(sch.get_sblock("root"))}
    return block_name(sch, block) in outputs


def split_accumulators(sch: Schedule, block: BlockHandle, target: CpuTarget) -> BlockHandle | None:
    """Let a sum over contiguous elements keep one partial sum a lane; the block of these, or None.

    Floating-point sums are not LLVM's to reorder, so the lanes are made here (`rfactor`).
    """
    spatial_count, _ = iterator_counts(sch, block)
    width = vector_width(sch, block, target)
    inner = list(sch.get_loops(block))[-1]
    size = loop_extent(sch, inner)
    if contiguous_axis(sch, block) != len(sch.get(block).iter_vars) - 1 or size is None or size < 2 * width:
        return None
    _, vector = sch.split(inner, [None, width])
    try:
        partial = sch.rfactor(vector, spatial_count)
    except ScheduleError:
        return None
    loops = list(sch.get_loops(partial))
    sch.vectorize(loops[-1])
    if size % width:
        # The last turn is peeled off: only there is an element to be tested for.
        sch.annotate(loops[-2], _PEEL, 1)
    return partial


def contiguous_axis(sch: Schedule, block: BlockHandle) -> int | None:
    """Which iterator of the block walks through the last dimension of the largest tensor that it reads."""
    statement = sch.get(block)
    own = [region.source for region in statement.writes]
    candidates = [
        region
        for region in statement.reads
        if region.region and not any(region.source.same_as(buffer) for buffer in own)
    ]
    if not candidates:
        return None
    main = max(candidates, key=lambda region: len(region.region))
    variables = _variables(main.region[-1].min)
    for position, iterator in enumerate(statement.iter_vars):
        if any(iterator.var.same_as(variable) for variable in variables):
            return position
    return None


def _variables(expression: Any) -> list[Any]:
    """The variables in an index expression."""
    return [] if isinstance(expression, int) else list(tirx.analysis.undefined_vars(expression))
