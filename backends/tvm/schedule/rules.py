"""The ordered list of CPU rules, and the entry point that applies it."""

from __future__ import annotations

import logging

import tvm
from tvm import tirx
from tvm.s_tir.schedule import ScheduleError

from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.schedule.contraction import Contraction
from whet.backends.tvm.schedule.depthwise import Depthwise
from whet.backends.tvm.schedule.fallback import Fallback
from whet.backends.tvm.schedule.matrix import with_runs
from whet.backends.tvm.schedule.names import with_unique_names
from whet.backends.tvm.schedule.rows import Rows
from whet.backends.tvm.schedule.rule import Rule
from whet.backends.tvm.schedule.stages import Stages
from whet.backends.tvm.schedule.vector_forms import with_vector_forms

CPU_RULES: tuple[Rule, ...] = (Contraction(), Depthwise(), Rows(), Stages(), Fallback())


SCHEDULE_ATTRIBUTE = "whet.schedule"
"""Attribute of a scheduled function: the name of the rule that took it, "none" where none could."""

_log = logging.getLogger(__name__)


def schedule_cpu(func: tirx.PrimFunc, target: CpuTarget, rules: tuple[Rule, ...] = CPU_RULES) -> tirx.PrimFunc:
    """Apply the first rule that accepts `func`; what no rule accepts comes back with its loops as they are.

    A rule that fails inside TVM has declined: TVM checks its primitives only as it applies them. The log (debug level)
    has the reason.
    """
    # An expression used twice binds its names twice, and a function with such bindings cannot be scheduled at all.
    # Inlining makes more of them, which cannot be compiled where they are read at different places.
    unique = with_unique_names(with_vector_forms(func))
    for rule in rules:
        try:
            sch = rule.apply(unique, target)
        except (ScheduleError, tvm.error.InternalError) as reason:
            _log.debug("rule %s declines: %s", rule.name, reason)
            continue
        if sch is not None:
            return with_unique_names(with_runs(sch.mod["main"])).with_attr(SCHEDULE_ATTRIBUTE, rule.name)
    return unique.with_attr(SCHEDULE_ATTRIBUTE, "none")
