"""How much scratch memory each kernel asks of its runtime, read from the code just before it becomes LLVM's."""

from __future__ import annotations

from typing import Any, Final

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from whet.backends.tvm.export_c.memory_plan import align
from whet.errors import BackendError, InternalError

_ALLOCATE: Final = "tirx.TVMBackendAllocWorkspace"
_FREE: Final = "tirx.TVMBackendFreeWorkspace"
_LAST_PASS: Final = "tirx.LowerTVMBuiltin"


@tvm.instrument.pass_instrument
class LoweredKernels:
    """An instrument that keeps the module in which allocations have become calls of the runtime."""

    def __init__(self) -> None:
        self.module: tvm.IRModule | None = None

    def run_after_pass(self, module: tvm.IRModule, info: Any) -> None:
        """Called by TVM after each pass."""
        if info.name == _LAST_PASS:
            self.module = module

    def workspace(self) -> dict[str, int]:
        """Bytes by kernel, at the deepest point of its nested allocations. Raises BackendError for a size that is known
        at run time only.
        """
        functions = {} if self.module is None else dict(self.module.functions_items())
        return {str(name.name_hint): _deepest(str(name.name_hint), function) for name, function in functions.items()}


def _deepest(kernel: str, function: tirx.PrimFunc) -> int:
    """Allocations are freed in the reverse order within one block, so text order is a stack."""
    held: list[int] = []
    deepest = 0

    def visit(call: Call) -> None:
        nonlocal deepest
        name = getattr(call.op, "name", "")
        if name == _FREE:
            if not held:
                raise InternalError(f"{kernel} frees scratch memory that it has not")
            held.pop()
        if name != _ALLOCATE:
            return
        size = call.args[2]
        if not isinstance(size, tirx.IntImm):
            raise BackendError(f"{kernel} needs {size} bytes of scratch memory, which is not known before it runs")
        held.append(align(int(size.value)))
        deepest = max(deepest, sum(held))

    tvm_ffi.structural_walk(function.body, [(Call, visit)], order="post")
    if held:
        raise InternalError(f"{kernel} keeps scratch memory")
    return deepest
