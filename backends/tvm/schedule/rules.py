"""The ordered list of CPU rules, and the entry point that applies it."""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir.schedule import ScheduleError

from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.schedule.contraction import Contraction
from whet.backends.tvm.schedule.depthwise import Depthwise
from whet.backends.tvm.schedule.fallback import Fallback
from whet.backends.tvm.schedule.rows import Rows
from whet.backends.tvm.schedule.rule import Rule
from whet.backends.tvm.schedule.stages import Stages

CPU_RULES: tuple[Rule, ...] = (Contraction(), Depthwise(), Rows(), Stages(), Fallback())


def schedule_cpu(
    func: tirx.PrimFunc, target: CpuTarget, rules: tuple[Rule, ...] = CPU_RULES
) -> tirx.PrimFunc:
    """Apply the first rule that accepts `func`; the last of `CPU_RULES` accepts everything."""
    for rule in rules:
        try:
            sch = rule.apply(func, target)
        except ScheduleError:
            continue
        if sch is not None:
            return sch.mod["main"].with_attr("whet.schedule", rule.name)
    return func
