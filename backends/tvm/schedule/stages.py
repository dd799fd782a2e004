"""Any function made of element-wise and reduction stages: each stage is scheduled for itself."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.s_tir.schedule import ScheduleError

from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.schedule.blocks import (
    BlockHandle,
    Schedule,
    all_blocks,
    annotation,
    block_name,
    is_elementwise,
    is_reduction,
    new_schedule,
    output_blocks,
    role,
)
from whet.backends.tvm.schedule.contraction import schedule_contraction
from whet.backends.tvm.schedule.depthwise import schedule_depthwise
from whet.backends.tvm.schedule.elementwise import inline_elementwise, schedule_elementwise
from whet.backends.tvm.schedule.reduction import schedule_reduction


@dataclass(frozen=True)
class Stages:
    """Rule for all that has blocks; stages of other kinds (scans, sorts, external calls) stay as they are."""

    name: str = "stages"

    def apply(self, func: tirx.PrimFunc, target: CpuTarget) -> tvm.s_tir.Schedule | None:
        """See `Rule`."""
        sch = new_schedule(func)
        inline_elementwise(sch, keep=output_blocks(sch), into_reductions=True)
        names = [block_name(sch, block) for block in all_blocks(sch)]
        for name in names:
            sch = _schedule_one(sch, name, target)
        return sch


_ANCHORS = {roles.CONTRACTION: schedule_contraction, roles.DEPTHWISE: schedule_depthwise}


def _schedule_one(sch: Schedule, name: str, target: CpuTarget) -> Schedule:
    """Schedule one stage on a copy; the untouched schedule comes back where TVM refuses."""
    attempt = sch.copy()
    block = attempt.get_sblock(name)
    if not _alone(attempt, block):
        return sch
    try:
        if role(attempt, block) == roles.ANCHOR:
            _ANCHORS[str(annotation(attempt, block, roles.KIND))](attempt, block, None, target)
        elif is_elementwise(attempt, block):
            schedule_elementwise(attempt, block, target)
        elif is_reduction(attempt, block):
            schedule_reduction(attempt, block, target)
    except ScheduleError:
        return sch
    return attempt


def _alone(sch: Schedule, block: BlockHandle) -> bool:
    """Whether the loops over the block are still the ones it was made with."""
    loops = list(sch.get_loops(block))
    return len(loops) == len(sch.get(block).iter_vars)
