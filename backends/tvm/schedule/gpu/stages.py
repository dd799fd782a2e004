"""Any function of element-wise and reduction stages: a kernel for each stage, one thread for each result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx

from whet.backends.tvm.schedule.blocks import (
    all_blocks,
    block_name,
    fused,
    is_elementwise,
    is_reduction,
    iterator_counts,
    new_schedule,
    output_blocks,
)
from whet.backends.tvm.schedule.elementwise import inline_elementwise
from whet.backends.tvm.schedule.gpu.elementwise import THREADS, share_elements
from whet.backends.tvm.schedule.gpu.rule import BLOCK, THREAD, Declines


@dataclass(frozen=True)
class Stages:
    """Rule for all that has only such stages: depthwise convolutions, pooling, sums over outer axes.

    Neighbouring threads compute neighbouring results, which in channels-last layouts read neighbouring elements.
    """

    name: str = "stages"

    def apply(self, func: tirx.PrimFunc, target: Any) -> tvm.s_tir.Schedule:
        """See `GpuRule`."""
        sch = new_schedule(func)
        inline_elementwise(sch, keep=output_blocks(sch), into_reductions=True)
        blocks = all_blocks(sch)
        if not blocks or not all(is_elementwise(sch, block) or is_reduction(sch, block) for block in blocks):
            raise Declines("a stage is neither element-wise nor a reduction")
        for block in blocks:
            if len(list(sch.get_loops(block))) != len(sch.get(block).iter_vars):
                raise Declines("stages share their loops")
        behind = _epilogue(sch)
        for name in [block_name(sch, block) for block in blocks]:
            block = sch.get_sblock(name)
            if name == behind:
                continue
            if is_elementwise(sch, block):
                share_elements(sch, block)
            else:
                _share_results(sch, block, behind)
        return sch


def _epilogue(sch: Any) -> str | None:
    """The last stage where it only finishes the results of one reduction: it is then done by the same thread."""
    final = output_blocks(sch)
    if len(final) != 1 or not is_elementwise(sch, final[0]):
        return None
    producers = list(sch.get_producers(final[0]))
    if len(producers) != 1 or not is_reduction(sch, producers[0]):
        return None
    same = iterator_counts(sch, producers[0])[0] == len(sch.get(final[0]).iter_vars)
    return block_name(sch, final[0]) if same else None


def _share_results(sch: Any, block: Any, behind: str | None) -> None:
    """Bind a reduction's results to threads; each reduces by itself."""
    last = None if behind is None else sch.get_sblock(behind)
    follows = last is not None and block_name(sch, next(iter(sch.get_producers(last)))) == block_name(sch, block)
    leading = last if follows else block
    results = len(sch.get(leading).iter_vars) - iterator_counts(sch, leading)[1]
    loops = list(sch.get_loops(leading))[:results]
    whole = fused(sch, loops or [sch.add_unit_loop(leading)])
    grid, thread = sch.split(whole, [None, THREADS])
    sch.bind(grid, BLOCK)
    sch.bind(thread, THREAD)
    if follows:
        sch.compute_at(block, thread, preserve_unit_loops=True)
        sch.set_scope(block, 0, "local")
