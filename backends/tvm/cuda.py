"""Default schedules for CUDA: dlight's rules in order, and one thread for what none of them takes."""

from __future__ import annotations

import functools
from typing import Any

import tvm
from tvm import tirx

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
    with described:
        for rule in _rules():
            scheduled = rule.apply(function, described, False)
            if scheduled is None:
                continue
            first = scheduled[0] if isinstance(scheduled, (list, tuple)) else scheduled
            result = first.mod["main"]
            if _can_be_lowered(result, described):
                name = type(rule).__name__.lower()
                return result.with_attr({"tirx.is_scheduled": True, "whet.schedule": name})
    raise BackendError(f"no schedule for {target.name} takes this kernel:\n{function.script()}")


def _can_be_lowered(function: tirx.PrimFunc, described: tvm.target.Target) -> bool:
    """Whether threads can share the function's reductions: dlight's rules do not ask what is reduced.

    A maximum that keeps NaN, or the index of one, is a reduction that TVM can only do in one thread.
    """
    module = tvm.IRModule({"main": function.with_attr({"target": described, "global_symbol": "main"})})
    try:
        tvm.s_tir.transform.LowerCrossThreadReduction()(module)
    except Exception as error:
        if "No matched reducer" not in str(error):
            raise
        return False
    return True
