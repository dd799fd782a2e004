"""Device code in a bundle: machine code, not source.

TVM's CUDA module keeps whatever its compiler put there as text, and asks a function named `COMPILE` for machine code
when the module is loaded. Whet's compiler puts machine code there, written as text behind a marker; here it is taken
out again, so that a device needs no compiler.
"""

from __future__ import annotations

import base64
from typing import Any, Final

from whet.runtime.library import tvm_ffi

COMPILE: Final = "tvm_callback_cuda_compile"
_MARKER: Final = "// whet: machine code, base64\n"


def as_text(code: bytes) -> str:
    """Machine code as a bundle holds it."""
    return _MARKER + base64.b64encode(code).decode("ascii")


def accept_device_code() -> None:
    """Let modules with machine code load; source goes to whatever compiled it before."""
    before = tvm_ffi().get_global_func(COMPILE, allow_missing=True)

    def compiled(code: Any) -> Any:
        text = code if isinstance(code, str) else bytes(code).decode("utf-8")
        if text.startswith(_MARKER):
            return base64.b64decode(text[len(_MARKER) :])
        if before is None:
            raise RuntimeError("this module holds CUDA source, and no CUDA compiler is registered")
        return before(code)

    tvm_ffi().register_global_func(COMPILE, compiled, override=True)
