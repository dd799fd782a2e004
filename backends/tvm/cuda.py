"""Schedules for CUDA: Whet's rules, then TVM's (dlight) for what none of them takes."""

from __future__ import annotations

import functools
from typing import Any

from tvm import tirx

from whet.backends.tvm.kernels.roles import DECLINED
from whet.backends.tvm.schedule.gpu.rules import can_be_lowered, schedule_gpu
from whet.backends.tvm.schedule.rules import SCHEDULE_ATTRIBUTE
from whet.backends.tvm.targets import tvm_target
from whet.errors import BackendError
from whet.ir.target import Target


@functools.cache
def _rules() -> tuple[Any, ...]:
    from tvm.s_tir import dlight

    gpu = dlight.gpu
    return (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())


def schedule_cuda(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """The function with its loops bound to blocks and threads. Raises BackendError where no rule takes it."""
    described = tvm_target(target)
    own, name, declined = schedule_gpu(function, target)
    if own is not None:
        return own.with_attr({"tirx.is_scheduled": True, SCHEDULE_ATTRIBUTE: name, DECLINED: list(declined)})
    with described:
        for rule in _rules():
            scheduled = rule.apply(function, described, False)
            if scheduled is None:
                continue
            first = scheduled[0] if isinstance(scheduled, (list, tuple)) else scheduled
            result = first.mod["main"]
            if can_be_lowered(result, target):
                name = f"dlight_{type(rule).__name__.lower()}"
                return result.with_attr({"tirx.is_scheduled": True, SCHEDULE_ATTRIBUTE: name, DECLINED: list(declined)})
    raise BackendError(f"no schedule for {target.name} takes this kernel:\n{function.script()}")
