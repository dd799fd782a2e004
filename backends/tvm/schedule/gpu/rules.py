"""The ordered list of GPU rules, and the entry point that applies it."""

from __future__ import annotations

import logging
from typing import Any, Final

import tvm
from tvm import tirx
from tvm.s_tir.schedule import ScheduleError

from whet.backends.tvm.kernels.roles import DECLINED
from whet.backends.tvm.schedule.blocks import all_blocks, annotation, new_schedule
from whet.backends.tvm.schedule.gpu.elementwise import Elementwise
from whet.backends.tvm.schedule.gpu.rows import Reductions, Rows
from whet.backends.tvm.schedule.gpu.rule import Declines, GpuRule
from whet.backends.tvm.schedule.gpu.stages import Stages
from whet.backends.tvm.schedule.gpu.tensor_core import TensorCore
from whet.backends.tvm.schedule.gpu.thread_tiles import ThreadTiles
from whet.backends.tvm.schedule.names import with_unique_names
from whet.backends.tvm.targets import tvm_target

GPU_RULES: Final[tuple[GpuRule, ...]] = (
    TensorCore(),
    ThreadTiles(),
    Elementwise(),
    Rows(),
    Reductions(),
    Stages(),
)

_log = logging.getLogger(__name__)


def schedule_gpu(func: tirx.PrimFunc, target: Any) -> tuple[tirx.PrimFunc | None, str, tuple[str, ...]]:
    """The function as the first rule that takes it leaves it, that rule's name, and why those before it declined.

    None in place of the function where all decline. The log (debug level) has the reasons too.
    """
    unique = with_unique_names(func)
    declined = _planned_otherwise(unique)
    for rule in GPU_RULES:
        try:
            scheduled = rule.apply(unique, target).mod["main"]
            if not can_be_lowered(scheduled, target):
                raise Declines("threads cannot share a reduction of this kind")
        except (Declines, ScheduleError, tvm.error.InternalError) as reason:
            text = str(reason).strip().splitlines()
            declined.append(f"{rule.name}: {text[-1] if text else type(reason).__name__}")
            _log.debug("rule %s declines: %s", rule.name, reason)
            continue
        return with_unique_names(scheduled), rule.name, tuple(declined)
    return None, "none", tuple(declined)


def _planned_otherwise(func: tirx.PrimFunc) -> list[str]:
    """Plans of a product that its lowering found not to fit, with their reasons."""
    sch = new_schedule(func)
    found = [annotation(sch, block, DECLINED) for block in all_blocks(sch)] if _has_root(func) else []
    return [str(reason) for reasons in found if reasons is not None for reason in reasons]


def _has_root(func: tirx.PrimFunc) -> bool:
    return isinstance(func.body, tvm.s_tir.SBlockRealize)


def can_be_lowered(function: tirx.PrimFunc, target: Any) -> bool:
    """Whether threads can share the function's reductions: rules do not ask what is reduced.

    A maximum that keeps NaN, or the index of one, is a reduction that TVM can only do in one thread.
    """
    described = {"target": tvm_target(target), "global_symbol": "main"}
    try:
        tvm.s_tir.transform.LowerCrossThreadReduction()(tvm.IRModule({"main": function.with_attr(described)}))
    except Exception as error:
        if "No matched reducer" not in str(error):
            raise
        return False
    return True
