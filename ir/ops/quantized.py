"""Quantization: real numbers to integers and back, and contractions over integers. See docs/numerics.md."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from whet.ir.definition import (
    Axis,
    Cost,
    Kept,
    OpDefinition,
    Tie,
    moved_bytes,
    require,
    same_rank_ties,
)
from whet.ir.dimensions import same_dim
from whet.ir.graph import Operation
from whet.ir.ops.contraction import (
    CHANNELS_FIRST,
    conv_cost,
    conv_shape,
    conv_ties,
    convolve,
    from_channels_first,
    linear_shape,
    linear_ties,
    matmul_shape,
    matmul_ties,
    resized_groups,
    to_channels_first,
)
from whet.ir.ops.pooling import Pooling, pooled_shape, windows
from whet.ir.ops.reduction import reduced_shape, reduction_ties
from whet.ir.types import DType, TensorType

INTEGER_OPERANDS = (DType.I8, DType.U8, DType.I4)


def along(parameter: Tensor, rank: int, axis: int | None) -> Tensor:
    """A scale or zero point shaped to broadcast: as it is (no axis), or per index of `axis`."""
    if axis is None or parameter.dim() == 0:
        return parameter
    shape = [1] * rank
    shape[axis] = -1
    return parameter.reshape(shape)


def saturate(rounded: Tensor, dtype: DType) -> Tensor:
    """Clamp to the type's range and convert; NaN counts as zero (numerics contract)."""
    low, high = dtype.integer_range
    return torch.nan_to_num(rounded, nan=0.0, posinf=high, neginf=low).clamp(low, high).to(dtype.torch)


def require_parameters(x: TensorType, axis: int | None, **parameters: TensorType) -> None:
    """Guard: scales and zero points are scalars, or have a number for each index of `axis`, or (without an axis)
    the rank of x and its size, or 1, in every dimension.
    """
    require(axis is None or 0 <= axis < x.rank, f"axis {axis} is outside of {x}")
    for name, parameter in parameters.items():
        per_tensor = parameter.rank == 0
        per_axis = axis is not None and parameter.rank == 1 and same_dim(parameter.shape[0], x.shape[axis])
        require(
            per_tensor or per_axis or (axis is None and _spans(parameter, x)),
            f"{name} {parameter} is neither a scalar nor one number an index of axis {axis}, nor broadcasts to {x}",
        )


def _spans(parameter: TensorType, x: TensorType) -> bool:
    sizes = zip(parameter.shape, x.shape, strict=False)
    return parameter.rank == x.rank and all(same_dim(size, 1) or same_dim(size, full) for size, full in sizes)


class Quantize(OpDefinition):
    """sat(rne(x · f32(1 / scale)) + zero_point), per tensor or along `axis`.

    Scale and zero point may be computed in the graph, and may have the rank of x with 1 in some dimensions: a number
    for each token, say.
    """

    name = "quantize"

    def infer(
        self,
        x: TensorType,
        scale: TensorType,
        zero_point: TensorType,
        *,
        dtype: DType,
        axis: int | None = None,
    ) -> TensorType:
        require(x.dtype.is_float, f"quantizes floats, got {x}")
        require(dtype in INTEGER_OPERANDS, f"quantizes to i8, u8 or i4, got {dtype.value}")
        require(scale.dtype is DType.F32 and zero_point.dtype is DType.I32, "scale must be f32, zero_point i32")
        require_parameters(x, axis, scale=scale, zero_point=zero_point)
        return TensorType(x.shape, dtype)

    def evaluate(
        self, x: Tensor, scale: Tensor, zero_point: Tensor, *, dtype: DType, axis: int | None = None
    ) -> Tensor:
        inverse = along(scale.reciprocal(), x.dim(), axis)
        rounded = torch.round(x.float() * inverse) + along(zero_point, x.dim(), axis)
        return saturate(torch.where(torch.isnan(rounded), along(zero_point, x.dim(), axis).float(), rounded), dtype)

    def axes(self, operation: Operation) -> list[Tie]:
        return _parameter_ties(operation)


class Dequantize(OpDefinition):
    """f32(q - zero_point) · scale, per tensor or along `axis`; q may be an int32 accumulator."""

    name = "dequantize"

    def infer(
        self,
        x: TensorType,
        scale: TensorType,
        zero_point: TensorType | None = None,
        *,
        axis: int | None = None,
    ) -> TensorType:
        require(x.dtype in (*INTEGER_OPERANDS, DType.I32), f"dequantizes i8, u8, i4 or i32, got {x}")
        require(scale.dtype is DType.F32, "scale must be f32")
        require(zero_point is None or zero_point.dtype is DType.I32, "zero_point must be i32")
        require_parameters(x, axis, scale=scale, **({} if zero_point is None else {"zero_point": zero_point}))
        return TensorType(x.shape, DType.F32)

    def evaluate(
        self, x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int | None = None
    ) -> Tensor:
        centered = x.to(torch.int32)
        if zero_point is not None:
            centered = centered - along(zero_point, x.dim(), axis)
        return centered.float() * along(scale, x.dim(), axis)

    def axes(self, operation: Operation) -> list[Tie]:
        return _parameter_ties(operation)


class Requantize(OpDefinition):
    """sat(rne(f32(accumulator) · multiplier) + zero_point); multiplier per tensor or along `axis`."""

    name = "requantize"

    def infer(
        self,
        x: TensorType,
        multiplier: TensorType,
        zero_point: TensorType,
        *,
        dtype: DType,
        axis: int | None = None,
    ) -> TensorType:
        require(x.dtype is DType.I32, f"requantizes i32, got {x}")
        require(dtype in INTEGER_OPERANDS, f"requantizes to i8, u8 or i4, got {dtype.value}")
        require(multiplier.dtype is DType.F32 and zero_point.dtype is DType.I32, "multiplier f32, zero_point i32")
        require_parameters(x, axis, multiplier=multiplier, zero_point=zero_point)
        return TensorType(x.shape, dtype)

    def evaluate(
        self, x: Tensor, multiplier: Tensor, zero_point: Tensor, *, dtype: DType, axis: int | None = None
    ) -> Tensor:
        rounded = torch.round(x.float() * along(multiplier, x.dim(), axis)) + along(zero_point, x.dim(), axis)
        return saturate(rounded, dtype)

    def axes(self, operation: Operation) -> list[Tie]:
        return _parameter_ties(operation)


def _parameter_ties(operation: Operation) -> list[Tie]:
    axis = operation.attributes["axis"]
    ties = same_rank_ties(operation)
    for slot, operand in enumerate(operation.operands):
        if not slot or operand is None or not operand.type.rank:
            continue
        if axis is not None:
            ties.append(Tie(Axis(slot, 0), Axis(-1, axis)))
        else:
            sizes = enumerate(operand.type.shape)
            ties += [Tie(Axis(slot, dim), Axis(-1, dim)) for dim, size in sizes if not same_dim(size, 1)]
    return ties


class ConvInteger(OpDefinition):
    """i32 Σ (x - x_zero_point) · weight + bias, as `conv`; padding is by the zero point, so that it adds
    nothing.
    """

    name = "conv_integer"

    def infer(
        self,
        x: TensorType,
        weight: TensorType,
        bias: TensorType | None = None,
        *,
        x_zero_point: int = 0,
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        dilation: tuple[int, ...],
        groups: int = 1,
        layout: str = CHANNELS_FIRST,
    ) -> TensorType:
        require_integer_operands(x, weight, bias)
        return TensorType(conv_shape(x, weight, bias, stride, padding, dilation, groups, layout), DType.I32)

    def evaluate(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        x_zero_point: int = 0,
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        dilation: tuple[int, ...],
        groups: int = 1,
        layout: str = CHANNELS_FIRST,
    ) -> Tensor:
        centered = x.double() - x_zero_point
        offset = None if bias is None else bias.double()
        return exact_int32(convolve(centered, weight.double(), offset, stride, padding, dilation, groups, layout))

    def axes(self, operation: Operation) -> list[Tie]:
        return conv_ties(operation)

    def resized(self, operation: Operation, kept: Kept) -> dict[str, Any]:
        return resized_groups(operation, kept)

    def cost(self, operation: Operation) -> Cost:
        return conv_cost(operation)


class LinearInteger(OpDefinition):
    """i32 Σ_i (x[..., i] - x_zero_point) · weight[o, i] + bias[o]."""

    name = "linear_integer"

    def infer(
        self, x: TensorType, weight: TensorType, bias: TensorType | None = None, *, x_zero_point: int = 0
    ) -> TensorType:
        require_integer_operands(x, weight, bias)
        return TensorType(linear_shape(x, weight, bias), DType.I32)

    def evaluate(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, x_zero_point: int = 0) -> Tensor:
        total = (x.double() - x_zero_point) @ weight.double().T
        return exact_int32(total if bias is None else total + bias.double())

    def axes(self, operation: Operation) -> list[Tie]:
        return linear_ties(operation)

    def cost(self, operation: Operation) -> Cost:
        return Cost(2 * operation.result.type.numel * operation.operand(1).type.shape[1], moved_bytes(operation))


class MatmulInteger(OpDefinition):
    """i32 Σ_k (x[..., m, k] - x_zero_point) · (y[..., k, n] - y_zero_point)."""

    name = "matmul_integer"

    def infer(self, x: TensorType, y: TensorType, *, x_zero_point: int = 0, y_zero_point: int = 0) -> TensorType:
        require_integer_operands(x, y, None)
        return TensorType(matmul_shape(x, y), DType.I32)

    def evaluate(self, x: Tensor, y: Tensor, *, x_zero_point: int = 0, y_zero_point: int = 0) -> Tensor:
        return exact_int32(torch.matmul(x.double() - x_zero_point, y.double() - y_zero_point))

    def axes(self, operation: Operation) -> list[Tie]:
        return matmul_ties(operation)

    def cost(self, operation: Operation) -> Cost:
        return Cost(2 * operation.result.type.numel * operation.operand(0).type.shape[-1], moved_bytes(operation))


class SumInteger(OpDefinition):
    """i32 Σ (x - x_zero_point) over `dims`, which stay as 1 where `keepdims`: a mean, before its division."""

    name = "sum_integer"

    def infer(
        self, x: TensorType, *, dims: tuple[int, ...], keepdims: bool = False, x_zero_point: int = 0
    ) -> TensorType:
        require(x.dtype in INTEGER_OPERANDS, f"sums 8-bit codes, got {x}")
        require(len(dims) > 0, "needs a dimension to sum over")
        return TensorType(reduced_shape(x, dims, keepdims), DType.I32)

    def evaluate(self, x: Tensor, *, dims: tuple[int, ...], keepdims: bool = False, x_zero_point: int = 0) -> Tensor:
        return (x.to(torch.int32) - x_zero_point).sum(dims, keepdims, dtype=torch.int32)

    def axes(self, operation: Operation) -> list[Tie]:
        return reduction_ties(operation, operation.attributes["dims"], operation.attributes["keepdims"])

    def cost(self, operation: Operation) -> Cost:
        return Cost(operation.operand(0).type.numel, moved_bytes(operation))


class SumPoolInteger(Pooling):
    """i32 Σ (x - x_zero_point) over each window: an average pool, before its division. Padding adds nothing."""

    name = "sum_pool_integer"

    def infer(
        self,
        x: TensorType,
        *,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        x_zero_point: int = 0,
        layout: str = CHANNELS_FIRST,
    ) -> TensorType:
        require(x.dtype in INTEGER_OPERANDS, f"sums 8-bit codes, got {x}")
        shape = pooled_shape(x, kernel, stride, padding, (1,) * len(kernel), False, layout)
        return TensorType(shape, DType.I32)

    def evaluate(
        self,
        x: Tensor,
        *,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        x_zero_point: int = 0,
        layout: str = CHANNELS_FIRST,
    ) -> Tensor:
        centered = to_channels_first(x, layout).to(torch.int32) - x_zero_point
        taps = windows(centered, kernel, stride, padding, (1,) * len(kernel), False, 0)
        return from_channels_first(taps.sum(-1, dtype=torch.int32), layout)


def require_integer_operands(x: TensorType, weight: TensorType, bias: TensorType | None) -> None:
    """Guard: 8-bit (or 4-bit) operands, and an i32 bias."""
    require(
        x.dtype in INTEGER_OPERANDS and weight.dtype in INTEGER_OPERANDS,
        f"operands must be 8-bit: {x}, {weight}",
    )
    require(bias is None or bias.dtype is DType.I32, f"bias must be i32, got {bias}")


def exact_int32(total: Tensor) -> Tensor:
    """Sums below 2**53 are exact in float64; int32 wraps as the hardware does."""
    return total.to(torch.int64).to(torch.int32)


DEFINITIONS: tuple[OpDefinition, ...] = (
    Quantize(),
    Dequantize(),
    Requantize(),
    ConvInteger(),
    LinearInteger(),
    MatmulInteger(),
    SumInteger(),
    SumPoolInteger(),
)
