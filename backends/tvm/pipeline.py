"""TVM's lowering of kernels, with one difference: small local buffers live on the stack.

TVM takes the memory of local buffers from its workspace: two calls of the runtime for every tile, and a pointer behind
which LLVM keeps nothing in registers, so that each tile's sums are written and read again before the epilogue. On the
stack they become registers. TVM would leave global buffers below 1 KiB there, too few bytes for a tile of AVX-512.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir.pipeline import default_s_tir_pipeline, finalize_device_passes
from tvm.tirx import compilation_pipeline

from whet.backends.tvm.prefetches import with_prefetches

PIPELINE: Final = "whet"
"""The name by which TVM's `build` functions find it."""

STACK_BYTES: Final = 8192
"""The largest buffer that goes to the stack: threads of small systems have few tens of KiB."""
_PLACEHOLDER: Final = "whet.stack_buffer"


def build_kernel(kernel: Any, target: tvm.target.Target) -> Any:
    """Machine code of a function, or of a module of functions. Raises what TVM raises."""
    return tvm.tirx.build(kernel, target, pipeline=PIPELINE)


def host_passes() -> tvm.transform.Pass:
    """What is done to the code of the host after kernels were split from it."""
    hidden: list[tirx.AllocBuffer] = []

    def hide(statement: tirx.AllocBuffer) -> Any:
        if not _fits(statement.buffer):
            return statement
        hidden.append(statement)
        return tirx.Evaluate(tirx.call_extern("int32", _PLACEHOLDER, len(hidden) - 1))

    def restore(statement: tirx.Evaluate) -> Any:
        call = statement.value
        name = call.args[0] if isinstance(call, tvm.ir.Call) and len(call.args) == 2 else None
        if not (isinstance(name, tvm.ir.StringImm) and name.value == _PLACEHOLDER):
            return statement
        return hidden[int(call.args[1])]

    return tvm.ir.transform.Sequential(
        [
            _over_bodies(tirx.AttrStmt, with_prefetches, "Prefetches"),
            _over_bodies(tirx.AllocBuffer, hide, "HideStackBuffers"),
            tirx.transform.LowerTVMBuiltin(),
            _over_bodies(tirx.Evaluate, restore, "RestoreStackBuffers"),
            tirx.transform.LowerIntrin(),
        ]
    )


def _fits(buffer: Any) -> bool:
    """Whether a buffer is local, and of a known size that a stack has room for."""
    if buffer.scope() != "local" or not all(isinstance(extent, tirx.IntImm) for extent in buffer.shape):
        return False
    dtype = tvm.runtime.DataType(str(buffer.dtype))
    size = math.prod(int(extent) for extent in buffer.shape) * dtype.lanes * -(-dtype.bits // 8)
    return bool(0 < size <= STACK_BYTES)


def _over_bodies(kind: type, change: Callable[[Any], Any], name: str) -> tvm.transform.Pass:
    def run(function: tirx.PrimFunc, module: tvm.IRModule, context: Any) -> tirx.PrimFunc:
        return function.with_body(tvm_ffi.structural_map(function.body, (kind, change)))

    return tirx.transform.prim_func_pass(run, opt_level=0, name=f"whet.{name}")


def device_passes() -> tvm.transform.Pass:
    """What is done to the code of a device, with every matrix that a warp's threads share.

    TVM's pass gives each thread its part of one such buffer a run, and leaves the others at the size of all threads.
    """
    shared = tirx.transform.LowerWarpMemory()

    def share(module: tvm.IRModule, context: Any) -> tvm.IRModule:
        while True:
            lowered = shared(module)
            if tvm_ffi.structural_equal(lowered, module):
                return lowered
            module = lowered

    everywhere = tvm.transform.module_pass(share, opt_level=0, name="whet.LowerWarpMemory")
    return tvm.ir.transform.Sequential([everywhere, finalize_device_passes()])


def _pipeline() -> tuple[Any, Any, Any]:
    return default_s_tir_pipeline()[0], host_passes, device_passes


# TVM takes its own pipelines by name only.
compilation_pipeline.PIPELINE_MAP[PIPELINE] = _pipeline
