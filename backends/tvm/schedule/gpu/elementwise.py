"""Element-wise functions: neighbouring threads on neighbouring elements, 16 bytes a thread, a bounded grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import tvm
import tvm_ffi
from tvm import tirx

from whet.backends.tvm.kernels.expressions import element_bytes
from whet.backends.tvm.kernels.gpu_plan import VECTOR_BYTES
from whet.backends.tvm.schedule.blocks import (
    BlockHandle,
    Schedule,
    all_blocks,
    fused,
    is_elementwise,
    loop_extent,
    new_schedule,
    output_blocks,
    static_product,
)
from whet.backends.tvm.schedule.elementwise import inline_elementwise, is_flat
from whet.backends.tvm.schedule.gpu.rule import BLOCK, THREAD, Declines

THREADS: Final = 256
MOST_BLOCKS: Final = 4096
"""Blocks from which each takes several turns: starting more costs more than a loop."""
# What TVM's code for CUDA writes element by element anyway, or cannot write for vectors at all.
_ARITHMETIC: Final = frozenset({"tirx.if_then_else", "tirx.nearbyint", "tirx.round", "tirx.likely"})


@dataclass(frozen=True)
class Elementwise:
    """Rule for functions of which every stage, once inlined, computes each element by itself."""

    name: str = "elementwise"

    def apply(self, func: tirx.PrimFunc, target: Any) -> tvm.s_tir.Schedule:
        """See `GpuRule`."""
        sch = new_schedule(func)
        outputs = output_blocks(sch)
        inline_elementwise(sch, keep=outputs)
        blocks = all_blocks(sch)
        if not all(is_elementwise(sch, block) for block in blocks):
            raise Declines("not every stage computes each element by itself")
        for block in blocks:
            share_elements(sch, block)
        return sch


def share_elements(sch: Schedule, block: BlockHandle) -> None:
    """Bind a stage that stands alone under the root."""
    loops = list(sch.get_loops(block))
    if not loops:
        loops = [sch.add_unit_loop(block)]
    lanes, count = _lanes(sch, block), static_product([loop_extent(sch, loop) for loop in loops])
    whole = fused(sch, loops)
    vector = None
    if lanes > 1:
        whole, vector = sch.split(whole, [None, lanes])
    if count is not None and count > MOST_BLOCKS * THREADS * lanes:
        _, grid, thread = sch.split(whole, [None, MOST_BLOCKS, THREADS])
    else:
        grid, thread = sch.split(whole, [None, THREADS])
    sch.bind(grid, BLOCK)
    sch.bind(thread, THREAD)
    if vector is not None:
        sch.vectorize(vector)


def _lanes(sch: Schedule, block: BlockHandle) -> int:
    """Elements of one thread: 16 bytes of the widest type, where all that a stage touches lies side by side."""
    if not is_flat(sch, block) or not _plain(sch, block):
        return 1
    statement = sch.get(block)
    regions = (*statement.reads, *statement.writes)
    count = static_product([loop_extent(sch, loop) for loop in sch.get_loops(block)])
    widest = max(element_bytes(str(region.source.dtype)) for region in regions)
    return 1 if count is None else math.gcd(count, VECTOR_BYTES // widest)


def _plain(sch: Schedule, block: BlockHandle) -> bool:
    """Whether a stage has arithmetic of floats and integers only."""
    statement = sch.get(block)
    odd: list[Any] = []

    def on_call(call: tvm.ir.Call) -> None:
        if getattr(call.op, "name", "") not in _ARITHMETIC:
            odd.append(call)

    walked = ((tvm.ir.Call, on_call), (tirx.Let, odd.append), (tirx.Select, odd.append))
    tvm_ffi.structural_walk(statement.body, walked)
    dtypes = {str(region.source.dtype) for region in (*statement.reads, *statement.writes)}
    return not odd and dtypes <= {"float32", "float16", "int32", "int8", "uint8"}
