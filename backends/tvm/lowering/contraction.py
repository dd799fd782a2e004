"""Contractions: the kernels of `whet.backends.tvm.kernels` where the weight is constant, plain sums otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from whet.backends.tvm.kernels.conv import conv, pack_conv_weight, plan_conv
from whet.backends.tvm.kernels.depthwise import depthwise, depthwise_tile, pack_depthwise_weight
from whet.backends.tvm.kernels.linear import linear, linear_tile, pack_linear_weight
from whet.backends.tvm.kernels.matmul import broadcast_shape, matmul, matmul_tile
from whet.backends.tvm.kernels.windows import Window, window
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.half import narrowed, widened
from whet.backends.tvm.lowering.loops import extent_of
from whet.backends.tvm.lowering.reduction import accumulator_dtype
from whet.backends.tvm.lowering.stored import is_known, known_weight
from whet.ir.graph import Operation, Value
from whet.ir.ops.contraction import CHANNELS_LAST, channel_dim, parse_equation, spatial_dims
from whet.ir.types import DType


def or_empty_sum(lower: Callable[..., Any]) -> Callable[..., Any]:
    """`lower`, but zeros (and the bias) where the weight has no element: a sum of nothing, of which no kernel knows."""

    def lowered(c: LoweringContext, operation: Operation) -> Any:
        if all(size != 0 for size in operation.operand(1).type.shape):
            return lower(c, operation)
        zero = tirx.const(0, tvm_dtype(operation.result.type.dtype))
        zeros = te.compute(c.dims(operation.result.type.shape), lambda *_: zero, name="empty_sum")
        rank = operation.result.type.rank
        return with_bias(c, operation, zeros, channel(operation) if "layout" in operation.attributes else rank - 1)

    return lowered


def _linear(c: LoweringContext, operation: Operation) -> te.Tensor:
    x, weight = c.tensor(operation.operand(0)), operation.operand(1)
    dtype = operation.result.type.dtype
    outputs = weight.type.shape[0]
    if not is_known(weight) or not isinstance(outputs, int):
        return with_bias(c, operation, matmul_of(c, x, c.tensor(weight), accumulator_dtype(dtype), transpose=True), -1)
    tile = linear_tile(c.target, x.shape, outputs, tvm_dtype(dtype))
    recipe = f"linear[{tile.block}]"
    packed = known_weight(c, weight, recipe, lambda tensor: pack_linear_weight(tensor, tile.block), tile.block)
    y = linear(x, packed, out_features=outputs, tile=tile, accumulator=accumulator_dtype(dtype))
    return with_bias(c, operation, y, -1)


def matmul_of(c: LoweringContext, a: te.Tensor, b: te.Tensor, accumulator: str, transpose: bool) -> te.Tensor:
    """a · b, or a · bᵀ; a may be a vector. Leading dimensions broadcast."""
    if len(a.shape) == 1:
        row = te.compute((1, *a.shape), lambda _, k: a(k), name="row")
        product = matmul_of(c, row, b, accumulator, transpose)
        return te.compute(product.shape[1:], lambda *index: product(0, *index), name="vector")
    if extent_of(a.shape[-1]) == 0:
        shape = (*broadcast_shape(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-2] if transpose else b.shape[-1])
        return te.compute(shape, lambda *_: tirx.const(0, accumulator), name="empty_sum")
    batch = a.shape[:-2] if len(a.shape) >= len(b.shape) else b.shape[:-2]
    columns = b.shape[-2] if transpose else b.shape[-1]
    tile = matmul_tile(c.target, batch, a.shape[-2], columns, a.shape[-1], accumulator)
    return matmul(a, b, tile=tile, transpose_b=transpose, accumulator=accumulator)


def _matmul(c: LoweringContext, operation: Operation) -> te.Tensor:
    a, b = c.tensor(operation.operand(0)), c.tensor(operation.operand(1))
    dtype = operation.result.type.dtype
    return _ended(matmul_of(c, a, b, accumulator_dtype(dtype), transpose=False), dtype)


def _conv(c: LoweringContext, operation: Operation) -> te.Tensor:
    value, weight = operation.operand(0), operation.operand(1)
    attributes, dtype = operation.attributes, operation.result.type.dtype
    if not is_known(weight) or attributes["layout"] != CHANNELS_LAST:
        return with_bias(c, operation, plain_conv(c, operation, accumulator_dtype(dtype)), channel(operation))
    x, groups = c.tensor(value), attributes["groups"]
    outputs, inner, *kernel = weight.type.static_shape
    geometry = window(kernel, attributes["stride"], attributes["padding"], attributes["dilation"])
    if groups > 1 and inner == 1:
        y = _depthwise(c, x, weight, outputs, geometry, dtype)
    else:
        plan = plan_conv(c.target, x.shape, outputs, geometry, groups, tvm_dtype(dtype))
        packed = known_weight(
            c,
            weight,
            f"conv[{plan.block},{plan.groups}]",
            lambda tensor: pack_conv_weight(tensor, plan.block, groups, plan.groups),
            plan.block,
        )
        y = conv(x, packed, geometry=geometry, out_channels=outputs, plan=plan, accumulator=accumulator_dtype(dtype))
    return with_bias(c, operation, y, channel(operation))


def _depthwise(
    c: LoweringContext, x: te.Tensor, weight: Value, channels: int, geometry: Window, dtype: DType
) -> te.Tensor:
    tile = depthwise_tile(c.target, x.shape, channels, geometry, tvm_dtype(dtype))
    packed = known_weight(c, weight, "depthwise", pack_depthwise_weight, None)
    return depthwise(x, packed, geometry=geometry, tile=tile, accumulator=accumulator_dtype(dtype))


def plain_conv(c: LoweringContext, operation: Operation, working: str, zero_point: int = 0) -> te.Tensor:
    """Any layout, any weight: for weights that are computed in the graph. `zero_point` is taken off what is in x."""
    value, weight_value = operation.operand(0), operation.operand(1)
    attributes = operation.attributes
    x, weight = c.tensor(value), c.tensor(weight_value)
    rank = value.type.rank
    dims, place = list(spatial_dims(rank, attributes["layout"])), channel_dim(rank, attributes["layout"])
    groups, shape = attributes["groups"], value.type.shape
    outputs_per_group = weight_value.type.shape[0] // groups
    inner = te.reduce_axis((0, c.dim(weight_value.type.shape[1])), name="ic")
    taps = [te.reduce_axis((0, c.dim(size)), name=f"k{i}") for i, size in enumerate(weight_value.type.shape[2:])]

    def element(*index: Any) -> Any:
        source, inside = list(index), []
        for i, dim in enumerate(dims):
            position = (
                index[dim] * attributes["stride"][i]
                + taps[i].var * attributes["dilation"][i]
                - attributes["padding"][i][0]
            )
            source[dim] = position
            if any(attributes["padding"][i]):
                inside += [position >= 0, position < c.dim(shape[dim])]
        group = tirx.indexdiv(index[place], c.dim(outputs_per_group))
        source[place] = group * c.dim(weight_value.type.shape[1]) + inner.var
        factor = widened(weight(index[place], inner.var, *(tap.var for tap in taps))).astype(working)
        item = (
            widened(x(*source)).astype(working) - tirx.const(zero_point, working)
            if zero_point
            else widened(x(*source)).astype(working)
        )
        if inside:
            item = tirx.if_then_else(tirx.all(*inside), item, tirx.const(0, working))
        return te.sum(item * factor, axis=[inner, *taps])

    return te.compute(c.dims(operation.result.type.shape), element, name="conv")


def _conv_transpose(c: LoweringContext, operation: Operation) -> te.Tensor:
    """Gathers: output p sums weight[k] · x[(p + padding - k · dilation) / stride] where the quotient is exact."""
    value, weight_value = operation.operand(0), operation.operand(1)
    attributes = operation.attributes
    x, weight = c.tensor(value), c.tensor(weight_value)
    rank, shape = value.type.rank, value.type.shape
    dims, channel = list(spatial_dims(rank, attributes["layout"])), channel_dim(rank, attributes["layout"])
    groups, dtype = attributes["groups"], operation.result.type.dtype
    working = accumulator_dtype(dtype)
    inputs, outputs_per_group, *kernel = weight_value.type.static_shape
    inner = te.reduce_axis((0, inputs // groups), name="ic")
    taps = [te.reduce_axis((0, size), name=f"k{i}") for i, size in enumerate(kernel)]

    def element(*index: Any) -> Any:
        source, inside = list(index), []
        for i, dim in enumerate(dims):
            stride = attributes["stride"][i]
            reached = index[dim] + attributes["padding"][i] - taps[i].var * attributes["dilation"][i]
            source[dim] = tirx.floordiv(reached, stride)
            inside += [reached >= 0, source[dim] < c.dim(shape[dim])]
            if stride > 1:
                inside.append(tirx.floormod(reached, stride) == 0)
        group = tirx.indexdiv(index[channel], outputs_per_group)
        source[channel] = group * (inputs // groups) + inner.var
        factor = widened(
            weight(source[channel], tirx.indexmod(index[channel], outputs_per_group), *(tap.var for tap in taps))
        ).astype(working)
        item = tirx.if_then_else(tirx.all(*inside), widened(x(*source)).astype(working), tirx.const(0, working))
        return te.sum(item * factor, axis=[inner, *taps])

    y = te.compute(c.dims(operation.result.type.shape), element, name="conv_transpose")
    return with_bias(c, operation, y, channel)


def _einsum(c: LoweringContext, operation: Operation) -> te.Tensor:
    terms, result = parse_equation(operation.attributes["equation"])
    operands = [operation.operand(slot) for slot in range(len(operation.operands))]
    tensors = [c.tensor(value) for value in operands]
    dtype = operation.result.type.dtype
    working = accumulator_dtype(dtype)
    sizes = {
        letter: c.dim(size)
        for term, value in zip(terms, operands, strict=True)
        for letter, size in zip(term, value.type.shape, strict=True)
    }
    axes = {letter: te.reduce_axis((0, size), name=letter) for letter, size in sizes.items() if letter not in result}

    def element(*index: Any) -> Any:
        place = dict(zip(result, index, strict=True)) | {letter: axis.var for letter, axis in axes.items()}
        total: Any = None
        for term, tensor in zip(terms, tensors, strict=True):
            item = widened(tensor(*(place[letter] for letter in term))).astype(working)
            total = item if total is None else total * item
        return te.sum(total, axis=list(axes.values())) if axes else total

    return _ended(te.compute(c.dims(operation.result.type.shape), element, name="einsum"), dtype)


def channel(operation: Operation) -> int:
    """The dimension of the result that channels lie in."""
    return channel_dim(operation.result.type.rank, operation.attributes["layout"])


def with_bias(c: LoweringContext, operation: Operation, y: te.Tensor, axis: int) -> te.Tensor:
    """Bias is added to the accumulator, before the result is rounded to its dtype."""
    dtype = operation.result.type.dtype
    value = operation.operands[2] if len(operation.operands) > 2 else None
    if value is None:
        return _ended(y, dtype)
    bias = c.tensor(value)

    def element(*index: Any) -> Any:
        return narrowed(y(*index) + widened(bias(index[axis])).astype(y.dtype), tvm_dtype(dtype))

    return te.compute(y.shape, element, name=f"{operation.name}_bias")


def _ended(y: te.Tensor, dtype: DType) -> te.Tensor:
    if y.dtype == tvm_dtype(dtype):
        return y
    return te.compute(y.shape, lambda *index: narrowed(y(*index), tvm_dtype(dtype)), name="rounded")


LOWERINGS: dict[str, Callable[..., Any]] = {
    "linear": or_empty_sum(_linear),
    "matmul": _matmul,
    "conv": or_empty_sum(_conv),
    "conv_transpose": or_empty_sum(_conv_transpose),
    "einsum": _einsum,
}
