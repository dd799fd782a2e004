"""Functions of several stages over common rows (softmax, norms): all stages of a row while it is in cache."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import tirx

from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.schedule.blocks import (
    BlockHandle,
    Schedule,
    all_blocks,
    block_name,
    fused,
    is_elementwise,
    is_reduction,
    iterator_counts,
    loop_extent,
    new_schedule,
    output_blocks,
    role,
    static_product,
)
from whet.backends.tvm.schedule.elementwise import inline_elementwise, parallelize, vector_width, vectorize
from whet.backends.tvm.schedule.reduction import contiguous_axis, split_accumulators


@dataclass(frozen=True)
class Rows:
    """Rule for one element-wise output behind reductions over the trailing axes of its rows."""

    name: str = "rows"

    def apply(self, func: tirx.PrimFunc, target: CpuTarget) -> tvm.s_tir.Schedule | None:
        """See `Rule`."""
        sch = new_schedule(func)
        outputs = output_blocks(sch)
        if len(outputs) != 1 or not is_elementwise(sch, outputs[0]) or not sch.get_loops(outputs[0]):
            return None
        if any(role(sch, block) is not None for block in all_blocks(sch)):
            return None
        inline_elementwise(sch, keep=outputs, into_reductions=True)
        blocks = all_blocks(sch)
        reductions = [block for block in blocks if is_reduction(sch, block)]
        if not reductions or len(blocks) != len(reductions) + _elementwise_count(sch):
            return None
        rows = min(iterator_counts(sch, block)[0] for block in reductions)
        final = output_blocks(sch)[0]
        if rows == 0 or rows >= len(sch.get_loops(final)) or not _trailing(sch, reductions):
            return None
        if any(_has_remainder(sch, block, target) for block in reductions):
            return None
        partials = [split_accumulators(sch, block, target) for block in reductions]
        _gather(sch, final, rows, target)
        for partial in partials:
            if partial is not None:
                _lanes_inside(sch, partial, 1)
        return sch


def _elementwise_count(sch: Schedule) -> int:
    return sum(is_elementwise(sch, block) for block in all_blocks(sch))


def _trailing(sch: Schedule, reductions: list[BlockHandle]) -> bool:
    """Whether every reduction runs along the contiguous axis."""
    return all(contiguous_axis(sch, block) == len(sch.get(block).iter_vars) - 1 for block in reductions)


def _has_remainder(sch: Schedule, block: BlockHandle, target: CpuTarget) -> bool:
    """Whether a long reduction fills no whole vectors: it needs a test, which `compute_at` would lose."""
    size = loop_extent(sch, list(sch.get_loops(block))[-1])
    width = vector_width(sch, block, target)
    return size is not None and size >= 2 * width and size % width != 0


def _lanes_inside(sch: Schedule, partial: BlockHandle, rows: int) -> None:
    """Put the lanes of partial sums innermost again: `compute_at` writes the loops anew, lanes first."""
    loops = list(sch.get_loops(partial))
    lane = loops[rows]
    sch.reorder(*loops[rows + 1 :], lane)
    sch.vectorize(lane)


def _gather(sch: Schedule, final: BlockHandle, rows: int, target: CpuTarget) -> None:
    """Compute every producer inside the row loop of `final`, then vectorize the innermost loops."""
    loops = list(sch.get_loops(final))
    work = static_product([loop_extent(sch, loop) for loop in loops])
    row = fused(sch, loops[:rows])
    last = block_name(sch, final)
    for block in reversed(all_blocks(sch)):
        if block_name(sch, block) != last:
            sch.compute_at(block, row, preserve_unit_loops=True)
    for block in list(sch.get_child_blocks(row)):
        inner = list(sch.get_loops(block))
        if is_elementwise(sch, block) and len(inner) > 1:
            vectorize(sch, inner[-1], vector_width(sch, block, target))
    parallelize(sch, [row], None if work is None else work * 4)
