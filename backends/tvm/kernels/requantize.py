"""From 32-bit sums back to 8 bits, and between floats and 8 bits, as docs/numerics.md has it.

`saturate(nearbyint(float32(sum) * multiplier) + zero_point)`: ties go to even, and the rounding stands
between the product and the addition, so that no fused multiply-add can join them.
"""

from __future__ import annotations

from tvm import tirx

from whet.backends.tvm.kernels.expressions import Expression

_RANGES: dict[str, tuple[int, int]] = {"int8": (-128, 127), "uint8": (0, 255)}


def requantize(total: Expression, multiplier: Expression, zero_point: int, dtype: str) -> Expression:
    """An int32 sum times a float32 multiplier, rounded, moved by the zero point, saturated to `dtype`."""
    return _saturated(total.astype("float32") * multiplier, zero_point, dtype)


def quantize(value: Expression, scale: Expression, zero_point: int, dtype: str) -> Expression:
    """A float32 value divided by its scale, rounded, shifted by the zero point and saturated to `dtype`."""
    return _saturated(value / scale, zero_point, dtype)


def dequantize(value: Expression, scale: Expression, zero_point: int) -> Expression:
    """The float32 value of a stored integer: the difference is taken in integers, so it is exact."""
    shifted = value.astype("int32") - tirx.const(zero_point, "int32")
    return shifted.astype("float32") * scale


def _saturated(value: Expression, zero_point: int, dtype: str) -> Expression:
    """Round to even, clip in float (converting what does not fit is undefined), then shift and narrow."""
    low, high = _RANGES[dtype]
    rounded = tirx.nearbyint(value)
    least, most = (
        tirx.const(float(low - zero_point), "float32"),
        tirx.const(float(high - zero_point), "float32"),
    )
    held = tirx.max(tirx.min(rounded, most), least)
    return (held.astype("int32") + tirx.const(zero_point, "int32")).astype(dtype)
