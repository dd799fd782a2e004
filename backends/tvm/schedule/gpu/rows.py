"""Reductions along rows and what is computed of them: a block for each row, its threads along the row.

Softmax, layer norm, means and their like: partial results are reduced by warp shuffles (TVM's lowering of reductions
that threads share), and what a row needs again stays in shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import tvm
from tvm import tirx

from whet.backends.tvm.kernels.expressions import element_bytes
from whet.backends.tvm.kernels.gpu_plan import SHARED_BYTES
from whet.backends.tvm.schedule.blocks import (
    BlockHandle,
    LoopHandle,
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
from whet.backends.tvm.schedule.elementwise import inline_elementwise
from whet.backends.tvm.schedule.gpu.rule import BLOCK, ROW, THREAD, Declines
from whet.backends.tvm.schedule.reduction import contiguous_axis

_WARP: Final = 32
_THREADS: Final = ((256, 32), (2048, 128))
"""(row of at most so many elements, threads for it); longer rows get the most."""
_MOST_THREADS: Final = 256
_WARPS: Final = 8
"""Short reductions that a block does at a time, one a warp."""


@dataclass(frozen=True)
class Rows:
    """Rule for reductions over trailing axes, all with the same rows, and the stages between and behind them."""

    name: str = "rows"

    def apply(self, func: tirx.PrimFunc, target: Any) -> tvm.s_tir.Schedule:
        """See `GpuRule`."""
        sch, reductions = open_reductions(func)
        final = output_blocks(sch)[0]
        if not is_elementwise(sch, final):
            raise Declines("the last stage is a reduction itself")
        rows = min(_leading(sch, block) for block in reductions)
        if not 0 < rows < len(list(sch.get_loops(final))):
            raise Declines("results have no more dimensions than there are rows")
        if any(contiguous_axis(sch, block) != len(sch.get(block).iter_vars) - 1 for block in reductions):
            raise Declines("a reduction does not run along the contiguous axis")
        length = max(_inner(sch, block, rows) for block in all_blocks(sch))
        threads = next((count for most, count in _THREADS if length <= most), _MOST_THREADS)
        _check_memory(sch, final, length)
        loops = list(sch.get_loops(final))
        row = fused(sch, loops[:rows])
        sch.bind(row, BLOCK)
        last = block_name(sch, final)
        for block in reversed(all_blocks(sch)):
            if block_name(sch, block) != last:
                sch.compute_at(block, row, preserve_unit_loops=True)
                sch.set_scope(block, 0, "shared")
        for block in list(sch.get_child_blocks(row)):
            _along(sch, list(sch.get_loops(block))[1:], threads, is_reduction(sch, block), block)
        return sch


@dataclass(frozen=True)
class Reductions:
    """Rule for one reduction over contiguous elements, with what follows each result: a warp for each result."""

    name: str = "reduction"

    def apply(self, func: tirx.PrimFunc, target: Any) -> tvm.s_tir.Schedule:
        """See `GpuRule`."""
        sch, reductions = open_reductions(func)
        if len(reductions) != 1 or len(all_blocks(sch)) > 2:
            raise Declines("more stages than a reduction and its epilogue")
        (reduction,), final = reductions, output_blocks(sch)[0]
        if contiguous_axis(sch, reduction) != len(sch.get(reduction).iter_vars) - 1:
            raise Declines("the reduction does not run along the contiguous axis")
        results, _ = iterator_counts(sch, reduction)
        if len(sch.get(final).iter_vars) - iterator_counts(sch, final)[1] != results:
            raise Declines("what follows has other dimensions")
        loops = list(sch.get_loops(final))[:results]
        if not loops:
            raise Declines("one result is reduced by one warp: other rules have more threads")
        result = fused(sch, loops)
        grid, warp = sch.split(result, [None, _WARPS])
        sch.bind(grid, BLOCK)
        sch.bind(warp, ROW)
        if block_name(sch, final) != block_name(sch, reduction):
            sch.compute_at(reduction, warp, preserve_unit_loops=True)
            sch.set_scope(reduction, 0, "local")
            _, lane = sch.split(sch.add_unit_loop(final), [None, _WARP])
            sch.bind(lane, THREAD)
        inner = list(sch.get_loops(reduction))[2:]
        _, terms = iterator_counts(sch, reduction)
        _along(sch, inner[-terms:], _WARP, True, reduction)
        return sch


def open_reductions(func: tirx.PrimFunc) -> tuple[Schedule, list[BlockHandle]]:
    """A schedule with everything inlined, and its reductions. Raises Declines for functions of other kinds."""
    sch = new_schedule(func)
    outputs = output_blocks(sch)
    if len(outputs) != 1 or any(role(sch, block) is not None for block in all_blocks(sch)):
        raise Declines("several results, or a product")
    inline_elementwise(sch, keep=outputs, into_reductions=True)
    blocks = all_blocks(sch)
    reductions = [block for block in blocks if is_reduction(sch, block)]
    others = [block for block in blocks if is_elementwise(sch, block)]
    if not reductions or len(reductions) + len(others) != len(blocks):
        raise Declines("no reduction, or a stage of another kind")
    return sch, reductions


def _leading(sch: Schedule, block: BlockHandle) -> int:
    """How many of a reduction's iterators stand for rows: kept dimensions of one element do not."""
    spatial, _ = iterator_counts(sch, block)
    sizes = [loop_extent(sch, loop) for loop in list(sch.get_loops(block))[:spatial]]
    while sizes and sizes[-1] == 1:
        sizes.pop()
    return len(sizes)


def _inner(sch: Schedule, block: BlockHandle, rows: int) -> int:
    """Elements that a stage computes or reads of one row. Raises Declines where that is symbolic."""
    size = static_product([loop_extent(sch, loop) for loop in list(sch.get_loops(block))[rows:]])
    if size is None:
        raise Declines("rows of symbolic length")
    return size


def _check_memory(sch: Schedule, final: BlockHandle, length: int) -> None:
    """Raise Declines where what a row needs again does not fit shared memory."""
    last, held = block_name(sch, final), 0
    for block in all_blocks(sch):
        if block_name(sch, block) == last:
            continue
        count = 1 if is_reduction(sch, block) else length
        held += count * element_bytes(str(sch.get(block).writes[0].source.dtype))
    if held > SHARED_BYTES // 2:
        raise Declines(f"a row needs {held} bytes of shared memory")


def _along(sch: Schedule, loops: list[LoopHandle], threads: int, reduces: bool, block: BlockHandle) -> None:
    """Share the loops below a row between threads."""
    if reduces:
        loops = loops[-iterator_counts(sch, block)[1] :]
    inner = fused(sch, loops)
    _, thread = sch.split(inner, [None, threads])
    sch.bind(thread, THREAD)
