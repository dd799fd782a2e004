"""Between real numbers and their quantized codes: exact, step by step as docs/numerics.md has it (section Q)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.half import named, widened
from whet.ir.dimensions import same_dim
from whet.ir.graph import Operation, Value
from whet.ir.target import Target
from whet.ir.types import DType

Scaled = Callable[[Any, Any], Any]

_ROUNDING = 1.5 * 2**23
"""A number of f32 whose last place is one; its own lowest 16 bits are zero."""
_LARGEST_ROUNDED = 2**15
"""The largest bound of codes that these bits hold."""


def rounded_product(target: Target, x: Any, y: Any) -> Any:
    """x · y rounded to f32 by itself: no addition that follows may be fused with it (numerics: R4).

    LLVM and nvcc contract a product and a sum into one fused multiply-add unless something stands between them.
    """
    if target.kind == "cuda":
        return tirx.call_pure_extern("float32", "__fmul_rn", x, y)
    return tirx.call_llvm_pure_intrin("float32", "llvm.arithmetic.fence", x * y)


def _quantize(c: LoweringContext, operation: Operation) -> te.Tensor:
    number = c.number(operation.operand(1))

    def scaled(x: Any, scale: Any) -> Any:
        inverse = (
            tirx.const(1.0, "float32") / scale
            if number is None
            else tirx.const(float(np.float32(1) / np.float32(number)), "float32")
        )
        return x.astype("float32") * inverse

    return _quantizing(c, operation, scaled)


def _requantize(c: LoweringContext, operation: Operation) -> te.Tensor:
    return _quantizing(c, operation, lambda x, multiplier: x.astype("float32") * multiplier)


def _quantizing(c: LoweringContext, operation: Operation, scaled: Scaled) -> te.Tensor:
    """sat(rne(scaled) + zero_point); NaN gives the zero point (numerics: Q2, Q3, Q7)."""
    x, scale, zero_point = (operation.operand(slot) for slot in range(3))
    dtype, axis = operation.attributes["dtype"], operation.attributes["axis"]
    c.tensor(x)

    number = not x.type.dtype.is_float or never_nan(c, x)

    def element(*index: Any) -> Any:
        place = parameter_index(zero_point, axis, index)
        offset = c.read(zero_point, place).astype("int32")
        value = scaled(widened(c.read(x, index)), c.read(scale, parameter_index(scale, axis, index)))

        def code(held: Any) -> Any:
            return _code(c.target, held, offset, dtype).astype(tvm_dtype(dtype))

        if number:
            return code(value)
        return named("value", value, lambda held: code(tirx.Select(tirx.isnan(held), tirx.const(0, "float32"), held)))

    return te.compute(c.dims(operation.result.type.shape), element, name=operation.name)


def _code(target: Target, value: Any, offset: Any, dtype: DType) -> Any:
    """sat(rne(value) + offset) as an int32 whose lowest bits are the code; `value` is a number.

    The bounds are whole numbers, so that a value may be held between them before it is rounded. Adding 1.5 · 2²³
    then rounds it, to nearest and ties to even, into the lowest bits of the sum: one addition in place of rounding and
    conversion. Between the product and the sum stand two comparisons: they cannot be fused.
    """
    shift = offset.astype("float32")
    low, high = (tirx.const(float(bound), "float32") - shift for bound in dtype.integer_range)
    held = tirx.max(tirx.min(value, high), low)
    if target.kind != "cpu" or max(abs(bound) for bound in dtype.integer_range) > _LARGEST_ROUNDED:
        return tirx.nearbyint(held).astype("int32") + offset
    return tirx.reinterpret("int32", held + tirx.const(_ROUNDING, "float32")) + offset


def never_nan(c: LoweringContext, value: Value) -> bool:
    """Whether this region computes `value` from integers in a way that cannot give NaN."""
    producer = value.producer
    if is_finite(c, value):
        return True
    if producer is None or not c.is_computed(value):
        return False
    operands = [operand for operand in producer.operands if operand is not None]
    if producer.name in _ARITHMETIC:
        return all(is_finite(c, operand) for operand in operands)
    return producer.name in _SELECTING and all(never_nan(c, operand) for operand in operands)


def is_finite(c: LoweringContext, value: Value) -> bool:
    """Whether `value` is a finite number, or what this region dequantizes (scales are finite) or selects from such."""
    number = c.number(value)
    if number is not None:
        return math.isfinite(number)
    producer = value.producer
    if producer is None or not c.is_computed(value):
        return False
    if producer.name == "dequantize":
        return True
    operands = [operand for operand in producer.operands if operand is not None]
    return producer.name in _SELECTING and all(is_finite(c, operand) for operand in operands)


# A sum or product of finite numbers may be infinite, but is a number; selections stay what their operands are.
_ARITHMETIC = frozenset({"add", "sub", "mul"})
_SELECTING = frozenset({"relu", "clamp", "maximum", "minimum"})


def parameter_index(parameter: Value, axis: int | None, index: Sequence[Any]) -> list[Any]:
    """Where a scale or zero point is read: nowhere per tensor, at the axis, or where it broadcasts to."""
    if parameter.type.rank == 0:
        return []
    if axis is not None:
        return [index[axis]]
    return [
        tirx.IntImm("int64", 0) if same_dim(size, 1) else at
        for size, at in zip(parameter.type.shape, index, strict=True)
    ]


def _dequantize(c: LoweringContext, operation: Operation) -> te.Tensor:
    """f32(q - zero_point) · scale, the difference in integers."""
    x, scale = operation.operand(0), operation.operand(1)
    zero_point = operation.operands[2] if len(operation.operands) > 2 else None
    axis = operation.attributes["axis"]
    c.tensor(x)

    def element(*index: Any) -> Any:
        centered = c.read(x, index).astype("int32")
        if zero_point is not None:
            centered = centered - c.read(zero_point, parameter_index(zero_point, axis, index))
        factor = c.read(scale, parameter_index(scale, axis, index))
        return rounded_product(c.target, centered.astype("float32"), factor)

    return te.compute(c.dims(operation.result.type.shape), element, name=operation.name)


LOWERINGS: dict[str, Callable[..., Any]] = {
    "quantize": _quantize,
    "requantize": _requantize,
    "dequantize": _dequantize,
}
