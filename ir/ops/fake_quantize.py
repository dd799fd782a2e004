"""Quantization that can be trained: real numbers snapped to the grid of an integer type, with a gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from whet.ir.definition import Axis, OpDefinition, Tie, require, same_rank_ties
from whet.ir.graph import Operation
from whet.ir.ops.quantized import INTEGER_OPERANDS, along, require_parameters
from whet.ir.types import DType, TensorType


class FakeQuantize(OpDefinition):
    """dequantize(quantize(x)), bit for bit, per tensor or along `axis`; `bounds` narrows the codes to (low, high).

    The gradient of rounding is taken as 1 (straight-through: Bengio et al. 2013; Jacob et al., CVPR 2018): dy/dx is 1
    where the code lies within the bounds, else 0. That of the scale s is, as in LSQ (Esser et al., ICLR 2020),

        dy/ds = (rne(x / s) - x / s) inside,  low - zero_point or high - zero_point outside,

    times 1 / √(N · high), where N is the number of elements that share a scale: of one row of dimension 0 for a scalar
    (a sample's features), of one index of `axis` otherwise (a channel's weights).
    """

    name = "fake_quantize"

    def infer(
        self,
        x: TensorType,
        scale: TensorType,
        zero_point: TensorType,
        *,
        dtype: DType,
        axis: int | None = None,
        bounds: tuple[int, int] | None = None,
    ) -> TensorType:
        require(x.dtype.is_float, f"quantizes floats, got {x}")
        require(dtype in INTEGER_OPERANDS, f"quantizes to i8, u8 or i4, got {dtype.value}")
        require(scale.dtype is DType.F32 and zero_point.dtype is DType.I32, "scale must be f32, zero_point i32")
        require_parameters(x, axis, scale=scale, zero_point=zero_point)
        low, high = codes(dtype, bounds)
        least, most = dtype.integer_range
        require(least <= low < high <= most, f"bounds {bounds} are not within {dtype.value}: {least} to {most}")
        return TensorType(x.shape, DType.F32)

    def evaluate(
        self,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        *,
        dtype: DType,
        axis: int | None = None,
        bounds: tuple[int, int] | None = None,
    ) -> Tensor:
        low, high = codes(dtype, bounds)
        result: Tensor = _StraightThrough.apply(x, scale, zero_point, low, high, axis)  # type: ignore[no-untyped-call]
        return result

    def axes(self, operation: Operation) -> list[Tie]:
        axis = operation.attributes["axis"]
        vectors = [slot for slot in (1, 2) if operation.operand(slot).type.rank == 1]
        return [*same_rank_ties(operation), *(Tie(Axis(slot, 0), Axis(-1, axis)) for slot in vectors)]


def codes(dtype: DType, bounds: tuple[int, int] | None) -> tuple[int, int]:
    """The smallest and largest code of a quantized tensor."""
    return dtype.integer_range if bounds is None else bounds


class _StraightThrough(torch.autograd.Function):
    """Codes as exact floats: the integers up to 255 and their differences lose nothing in f32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None
    ) -> Tensor:
        inverse = along(scale.reciprocal(), x.dim(), axis)
        offset = along(zero_point, x.dim(), axis)
        rounded = (x.float() * inverse).round_().nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf) + offset
        code = rounded.clamp(low, high)
        inside = code == rounded
        code -= offset
        ctx.axis, ctx.high, ctx.x_dtype = axis, high, x.dtype
        # keeping codes and x for the whole step doubles its memory: only where a scale is learned
        ctx.save_for_backward(inside, *((x, code, scale) if ctx.needs_input_grad[1] else ()))
        return code * along(scale, x.dim(), axis)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inside, *rest = ctx.saved_tensors
        to_x = (gradient * inside).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None
        if not rest:
            return to_x, None, None, None, None, None
        x, code, scale = rest
        to_scale = _scale_gradient(gradient, inside, x, code, scale, ctx.axis, ctx.high)
        return to_x, to_scale, None, None, None, None


def _scale_gradient(
    gradient: Tensor, inside: Tensor, x: Tensor, code: Tensor, scale: Tensor, axis: int | None, high: int
) -> Tensor:
    slope = code - x.float() * along(scale.reciprocal(), x.dim(), axis) * inside
    total = gradient * slope
    if scale.dim() == 0:
        return total.sum() / math.sqrt(max(x[:1].numel(), 1) * high)
    assert axis is not None
    others = [dim for dim in range(x.dim()) if dim != axis]
    total = total.sum(others) if others else total
    return total / math.sqrt(max(x.numel() // len(scale), 1) * high)


DEFINITIONS: tuple[OpDefinition, ...] = (FakeQuantize(),)
