"""Integer contractions: the stored integers are multiplied as they are, zero points are constants a column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tvm import te, tirx

from whet.backends.tvm.kernels.depthwise import (
    depthwise,
    depthwise_instruction,
    depthwise_tile,
    pack_depthwise_weight,
)
from whet.backends.tvm.kernels.dot import (
    dot_conv,
    dot_linear,
    pack_dot_conv_weight,
    pack_dot_linear_weight,
    plan_dot_conv,
    plan_dot_linear,
)
from whet.backends.tvm.kernels.integer import compensation
from whet.backends.tvm.kernels.windows import Window, window
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.contraction import channel, dot_matmul_of, or_empty_sum, plain_conv, with_bias
from whet.ir.graph import Operation, Value
from whet.ir.ops.contraction import CHANNELS_LAST


def _conv(c: LoweringContext, operation: Operation) -> te.Tensor:
    value, weight = operation.operand(0), operation.operand(1)
    attributes = operation.attributes
    if weight.constant is None or attributes["layout"] != CHANNELS_LAST:
        return with_bias(
            c, operation, plain_conv(c, operation, "int32", attributes["x_zero_point"]), channel(operation)
        )
    x, groups, zero_point = c.tensor(value), attributes["groups"], attributes["x_zero_point"]
    outputs, inner, *kernel = weight.type.static_shape
    geometry = window(kernel, attributes["stride"], attributes["padding"], attributes["dilation"])
    if groups > 1 and inner == 1:
        return _adjusted(c, operation, _depthwise(c, x, weight, outputs, geometry, zero_point), 0)
    plan = plan_dot_conv(c.target, x.shape, outputs, geometry, groups, tvm_dtype(value.type.dtype))
    packed = c.packed(weight, f"dot conv{plan.recipe}", lambda tensor: pack_dot_conv_weight(tensor, plan, groups))
    y = dot_conv(x, packed, geometry=geometry, out_channels=outputs, plan=plan, zero_point=zero_point)
    return _adjusted(c, operation, y, plan.offset)


def _depthwise(
    c: LoweringContext, x: te.Tensor, weight: Value, channels: int, geometry: Window, zero_point: int
) -> te.Tensor:
    tile = depthwise_tile(c.target, x.shape, channels, geometry, "int32")
    instruction = depthwise_instruction(c.target, tile, x.shape[-1], channels, str(x.dtype))
    dtype = torch.int8 if instruction is None else torch.int32
    packed = c.packed(weight, f"depthwise[{dtype}]", lambda tensor: pack_depthwise_weight(tensor).to(dtype))
    return depthwise(
        x,
        packed,
        geometry=geometry,
        tile=tile,
        # of the codes' dtype: a plain number would make the padded copy one of int32
        pad_value=tirx.const(zero_point, str(x.dtype)),
        accumulator="int32",
        instruction=instruction,
    )


def _linear(c: LoweringContext, operation: Operation) -> te.Tensor:
    value, weight = operation.operand(0), operation.operand(1)
    x = c.tensor(value)
    if weight.constant is None:
        zero_points = operation.attributes["x_zero_point"], 0
        return with_bias(c, operation, dot_matmul_of(c, x, c.tensor(weight), zero_points, transpose=True), -1)
    outputs = weight.type.static_shape[0]
    plan = plan_dot_linear(c.target, x.shape, outputs, tvm_dtype(value.type.dtype))
    packed = c.packed(weight, f"dot linear{plan.recipe}", lambda tensor: pack_dot_linear_weight(tensor, plan))
    return _adjusted(c, operation, dot_linear(x, packed, out_features=outputs, plan=plan), plan.offset)


def _adjusted(c: LoweringContext, operation: Operation, y: te.Tensor, offset: int) -> te.Tensor:
    """Take the zero point out, and add the bias: both are one integer a channel, which is the last axis."""
    weight = operation.operand(1)
    bias_value = operation.operands[2] if len(operation.operands) > 2 else None
    zero_point = operation.attributes["x_zero_point"]
    terms = [] if bias_value is None else [c.tensor(bias_value)]
    if zero_point + offset:
        terms.append(
            c.packed(
                weight,
                f"compensation[{zero_point},{offset}]",
                lambda tensor: compensation(tensor, zero_point, offset),
            )
        )
    if not terms:
        return y

    def element(*index: Any) -> Any:
        total = y(*index)
        for term in terms:
            total = total + term(index[-1])
        return total

    return te.compute(y.shape, element, name=f"{operation.name}_adjusted")


def _matmul(c: LoweringContext, operation: Operation) -> te.Tensor:
    """Both operands are activations: the second is packed as it is read, and each has a zero point."""
    zero_points = operation.attributes["x_zero_point"], operation.attributes["y_zero_point"]
    a, b = (c.tensor(operation.operand(slot)) for slot in range(2))
    return dot_matmul_of(c, a, b, zero_points, transpose=False)


LOWERINGS: dict[str, Callable[..., Any]] = {
    "conv_integer": or_empty_sum(_conv),
    "linear_integer": or_empty_sum(_linear),
    "matmul_integer": _matmul,
}
