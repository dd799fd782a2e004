"""Operations without operands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sympy
from tvm import te, tirx

from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.ir.graph import Operation
from whet.ir.types import DType


def _full(c: LoweringContext, operation: Operation) -> te.Tensor:
    dtype = operation.attributes["dtype"]
    value = _element(c, operation.attributes["value"], dtype)
    return te.compute(c.dims(operation.attributes["shape"]), lambda *_: value, name="full")


def _iota(c: LoweringContext, operation: Operation) -> te.Tensor:
    attributes = operation.attributes
    dtype = attributes["dtype"]
    working = "float64" if dtype.is_float else "int64"

    def element(index: Any) -> Any:
        step, start = (_number(c, attributes[key], working) for key in ("step", "start"))
        return (index.astype(working) * step + start).astype(tvm_dtype(dtype))

    return te.compute(c.dims((attributes["length"],)), element, name="iota")


def _number(c: LoweringContext, value: Any, dtype: str) -> Any:
    return c.dim(value).astype(dtype) if isinstance(value, sympy.Expr) else tirx.const(value, dtype)


def _element(c: LoweringContext, value: Any, dtype: DType) -> Any:
    if isinstance(value, sympy.Expr):
        return c.dim(value).astype(tvm_dtype(dtype))
    if dtype.is_float and not math.isfinite(value):
        return _non_finite(float(value), tvm_dtype(dtype))
    return tirx.const((dtype.torch.is_floating_point and float(value)) or value, tvm_dtype(dtype))


def _non_finite(value: float, dtype: str) -> Any:
    if math.isnan(value):
        return tirx.const(math.nan, dtype)
    infinity = tirx.infinity(dtype)
    return infinity if value > 0 else -infinity


LOWERINGS: dict[str, Callable[..., Any]] = {"full": _full, "iota": _iota}
