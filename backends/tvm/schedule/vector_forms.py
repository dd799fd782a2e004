"""Calls that TVM's vectorizer computes lane by lane, in words that it knows for vectors.

A loop that binds names beside such a call cannot be vectorized at all (`blocks.can_vectorize`), and LLVM's own
vectorizer stops at the fences that keep products and sums apart: the epilogue of a quantized residual block would be
scalar, and take longer than its convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import tvm
import tvm_ffi
from tvm import tirx

from whet.backends.tvm.kernels.math import expression_dtype

# Bits of a float but for its sign, and those of infinity: what is above is no number.
_NUMBERS: Final[Mapping[str, tuple[str, int, int]]] = {
    "float16": ("uint16", 0x7FFF, 0x7C00),
    "float32": ("uint32", 0x7FFFFFFF, 0x7F800000),
    "float64": ("uint64", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}


def with_vector_forms(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with the calls of `_FORMS` rewritten, for code that LLVM compiles; its numbers are the same."""

    def rewrite(call: tvm.ir.Call) -> Any:
        form = _FORMS.get(call.op.name) if isinstance(call.op, tvm.ir.Op) else None
        return call if form is None else form(call, call.args[0])

    return func.with_body(tvm_ffi.structural_map(func.body, (tvm.ir.Call, rewrite)))


def _rounded(call: Any, x: Any) -> Any:
    return tirx.call_llvm_pure_intrin(expression_dtype(call), "llvm.nearbyint", x)


def _is_nan(call: Any, x: Any) -> Any:
    known = _NUMBERS.get(expression_dtype(x))
    if known is None:
        return call
    bits, magnitude, infinity = known
    held = tirx.bitwise_and(tirx.reinterpret(bits, x), tirx.const(magnitude, bits))
    return held > tirx.const(infinity, bits)


_FORMS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {"tirx.nearbyint": _rounded, "tirx.isnan": _is_nan}
