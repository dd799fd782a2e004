"""How fast the multiply-adds of a device are at most, measured: the yardstick of the tuning table."""

from __future__ import annotations

from typing import Final

import numpy as np
import tvm
from tvm.script import from_source

from whet.backends.tvm.intrinsics.instructions import dot_instruction
from whet.backends.tvm.kernels.cpu import lanes
from whet.backends.tvm.tuning.runner import Runner
from whet.backends.tvm.tuning.task import Kernel
from whet.ir.target import Target
from whet.runtime.safetensors import RawTensor

FLOAT: Final = "float"
INTEGER: Final = "integer"
_STEPS: Final = 1 << 16
_CHAINS: Final = 12
"""Independent sums: more than latency times ports of any core, fewer than it has registers."""

_SOURCE: Final = """
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(
    X: T.Buffer(({lanes},), "float32"),
    Y: T.Buffer(({lanes},), "float32"),
    Z: T.Buffer(({tasks}, {chains}, {lanes}), "float32"),
) -> None:
    T.func_attr({{"tirx.noalias": True}})
    for p in T.parallel({tasks}):
        with T.sblock("task"):
            vp = T.axis.spatial({tasks}, p)
            A = T.sblock_alloc_buffer(({chains}, {lanes}), "float32", scope="local")
            for c in T.unroll({chains}):
                A[c, {vector}] = Z[vp, c, {vector}]
            for k in range({steps}):
                for c in T.unroll({chains}):
                    A[c, {vector}] = A[c, {vector}] * X[{vector}] + Y[{vector}]
            for c in T.unroll({chains}):
                Z[vp, c, {vector}] = A[c, {vector}]
"""
"""The sums begin with what is in memory, and factor and addend are two arrays: what is equal, a compiler computes once,
and a * x + x it may compute as (a + 1) * x.
"""


def peak_operations(runner: Runner, target: Target) -> dict[str, float]:
    """Operations per second on all cores, by precision; empty where the device could not be measured.

    Floats are measured. Integers are counted from it: an instruction that sums `group` products of each lane issues on
    the ports of the float multiply-add.
    """
    width, tasks = lanes(target), target.num_cores
    vector = f"T.ramp(T.int32(0), 1, {width})"
    source = _SOURCE.format(lanes=width, tasks=tasks, chains=_CHAINS, steps=_STEPS, vector=vector)
    module = tvm.IRModule({"main": from_source(source)})
    halves = RawTensor("f32", np.full(width, 0.5, np.float32))
    kernel = Kernel(tvm.ir.save_json(module), [halves, halves], [], [("f32", (tasks, _CHAINS, width))])
    answer = runner.measure(kernel, "peak", reference=True)
    if "seconds" not in answer:
        return {}
    flops = 2.0 * _STEPS * _CHAINS * width * tasks / float(answer["seconds"])
    return {FLOAT: flops, INTEGER: flops * dot_instruction(target).group}
