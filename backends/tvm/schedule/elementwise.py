"""Element-wise stages: parallel over the outer loops, one vector in the inner one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import tirx
from tvm.s_tir.schedule import ScheduleError

from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.cpu import CpuTarget, lanes
from whet.backends.tvm.schedule.blocks import (
    BlockHandle,
    LoopHandle,
    Schedule,
    all_blocks,
    block_name,
    can_vectorize,
    fused,
    is_elementwise,
    loop_extent,
    role,
    static_product,
)

# Waking the other threads costs some microseconds: as much as moving this many elements.
_WORTH_PARALLEL = 16 * 1024
# Narrower vectors than this are left to LLVM, which may find better ones.
_NARROWEST = 4


def schedule_elementwise(sch: Schedule, block: BlockHandle, target: CpuTarget) -> None:
    """Schedule one spatial block that stands alone under the root."""
    loops = list(sch.get_loops(block))
    if not loops:
        return
    width = vector_width(sch, block, target)
    if len(loops) > 1 and is_flat(sch, block):
        loops = [sch.fuse(*loops)]
    work = static_product([loop_extent(sch, loop) for loop in loops])
    if work is not None:
        # In elements of 32 bits: of narrower ones a vector moves more.
        work = work * lanes(target) // width
    outer, inner = loops[:-1], loops[-1]
    if not outer:
        chunk = _chunk(loop_extent(sch, inner), width)
        if chunk is not None:
            head, inner = sch.split(inner, [None, chunk])
            outer = [head]
    parallelize(sch, outer, work)
    vectorize(sch, inner, width)


def parallelize(sch: Schedule, loops: Sequence[LoopHandle], work: int | None) -> None:
    """Fuse `loops` into one parallel loop if `work` (32-bit elements; None: unknown) pays for waking the threads."""
    if loops and (work is None or work >= _WORTH_PARALLEL):
        sch.parallel(fused(sch, loops))


def vectorize(sch: Schedule, inner: LoopHandle, width: int) -> LoopHandle | None:
    """Vectorize a loop whose extent is a multiple of a useful vector and return that vector loop.

    Others stay as they are, for LLVM's own vectorizer, which knows how to peel the rest.
    """
    size = loop_extent(sch, inner)
    if size is None or size < 2 or not can_vectorize(sch, inner):
        return None
    step = math.gcd(size, width)
    if size <= width and size & (size - 1) == 0:
        step = size
    if step < _NARROWEST and size > _NARROWEST:
        return None
    if size == step:
        sch.vectorize(inner)
        return inner
    _, vector = sch.split(inner, [None, step])
    sch.vectorize(vector)
    return vector


def inline_elementwise(sch: Schedule, keep: Sequence[BlockHandle], into_reductions: bool = False) -> None:
    """Inline every stage without a role into its consumers, but for `keep`.

    A stage that a reduction reads is inlined only if `into_reductions` and nobody else reads it, never into an
    anchor. Stages that TVM refuses to inline stay and are scheduled on their own. Handles of inlined blocks die.
    """
    kept = {block_name(sch, block) for block in keep}
    for block in all_blocks(sch):
        if role(sch, block) is not None or not is_elementwise(sch, block) or block_name(sch, block) in kept:
            continue
        consumers = list(sch.get_consumers(block))
        plain = all(is_elementwise(sch, consumer) for consumer in consumers)
        alone = into_reductions and len(consumers) == 1 and role(sch, consumers[0]) != roles.ANCHOR
        if not consumers or not (plain or alone):
            continue
        try:
            sch.compute_inline(block)
        except ScheduleError:
            continue


def vector_width(sch: Schedule, block: BlockHandle, target: CpuTarget) -> int:
    """Lanes of the widest element the block touches: narrower ones are converted on the way."""
    statement = sch.get(block)
    dtypes = {str(region.source.dtype) for region in (*statement.reads, *statement.writes)}
    return max(1, min((lanes(target, dtype) for dtype in dtypes), default=1))


def is_flat(sch: Schedule, block: BlockHandle) -> bool:
    """Whether all buffers have one and the same static shape and are read where they are written."""
    statement = sch.get(block)
    regions = (*statement.reads, *statement.writes)
    if any(not isinstance(size, tirx.IntImm) for region in regions for size in region.source.shape):
        return False
    shapes = {tuple(int(size) for size in region.source.shape) for region in regions}
    variables = [iterator.var for iterator in statement.iter_vars]
    return len(shapes) == 1 and all(
        len(region.region) == len(variables)
        and all(axis.min.same_as(variable) for axis, variable in zip(region.region, variables, strict=True))
        for region in regions
    )


def _chunk(size: int | None, width: int) -> int | None:
    """How much of a lone loop one parallel turn takes: some vectors; None for a loop too short to be cut."""
    if size is None:
        return width * 4
    if size <= width:
        return None
    for count in (4, 2, 1):
        if size % (width * count) == 0:
            return width * count
    return width * 4
