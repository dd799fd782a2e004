"""Contractions: the kernels of `whet.backends.tvm.kernels` where the weight is constant, plain sums otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from whet.backends.tvm.kernels.conv import conv, pack_conv_weight, plan_conv
from whet.backends.tvm.kernels.cpu import has_masks
from whet.backends.tvm.kernels.decisions import DIRECT, chosen_algorithm
from whet.backends.tvm.kernels.depthwise import depthwise, depthwise_tile, pack_depthwise_weight
from whet.backends.tvm.kernels.dot import (
    dot_conv,
    dot_linear,
    dot_matmul,
    groups_fit,
    has_dot,
    pack_dot_conv_weight,
    pack_dot_linear_weight,
    plan_dot_conv,
    plan_dot_linear,
    plan_dot_matmul,
)
from whet.backends.tvm.kernels.dot_plan import BFLOAT
from whet.backends.tvm.kernels.linear import linear, linear_tile, pack_linear_weight
from whet.backends.tvm.kernels.matmul import broadcast_shape, matmul, matmul_tile
from whet.backends.tvm.kernels.windows import Window, window
from whet.backends.tvm.kernels.winograd import (
    TRANSFORMS,
    fits_winograd,
    pack_winograd_weight,
    plan_winograd,
    winograd,
)
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
    if _by_dots(c, x, weight):
        dots = plan_dot_linear(c.target, x.shape, outputs, BFLOAT)
        pairs = c.packed(weight, f"dot linear{dots.recipe}", lambda tensor: pack_dot_linear_weight(tensor, dots))
        return with_bias(c, operation, dot_linear(x, pairs, out_features=outputs, plan=dots), -1)
    tile = linear_tile(c.target, x.shape, outputs, tvm_dtype(dtype))
    recipe = f"linear[{tile.block}]"
    packed = known_weight(c, weight, recipe, lambda tensor: pack_linear_weight(tensor, tile.block), tile.block)
    y = linear(x, packed, out_features=outputs, tile=tile, accumulator=accumulator_dtype(dtype))
    return with_bias(c, operation, y, -1)


def _by_dots(c: LoweringContext, x: te.Tensor, weight: Value) -> bool:
    """Whether both operands are bf16, the weight a constant, and the target has an instruction for them."""
    return (
        str(x.dtype) == BFLOAT
        and weight.constant is not None
        and weight.type.dtype is DType.BF16
        and has_dot(c.target, BFLOAT)
    )


def matmul_of(c: LoweringContext, a: te.Tensor, b: te.Tensor, accumulator: str, transpose: bool) -> te.Tensor:
    """a · b, or a · bᵀ; a may be a vector. Leading dimensions broadcast."""
    if str(a.dtype) == str(b.dtype) == BFLOAT and has_dot(c.target, BFLOAT):
        return dot_matmul_of(c, a, b, (0, 0), transpose)

    def multiply(a: te.Tensor, b: te.Tensor, batch: Sequence[Any], columns: Any) -> te.Tensor:
        tile = matmul_tile(c.target, batch, a.shape[-2], columns, a.shape[-1], accumulator)
        return matmul(a, b, tile=tile, transpose_b=transpose, accumulator=accumulator)

    return _matrices(a, b, accumulator, transpose, multiply)


def dot_matmul_of(
    c: LoweringContext, a: te.Tensor, b: te.Tensor, zero_points: tuple[int, int], transpose: bool
) -> te.Tensor:
    """(a - za) · (b - zb), or with bᵀ, by dot instructions; a may be a vector. Leading dimensions broadcast."""

    def multiply(a: te.Tensor, b: te.Tensor, batch: Sequence[Any], columns: Any) -> te.Tensor:
        plan = plan_dot_matmul(c.target, batch, a.shape[-2], columns, a.shape[-1], str(a.dtype))
        return dot_matmul(a, b, plan=plan, zero_points=zero_points, transpose_b=transpose)

    return _matrices(a, b, "float32" if str(a.dtype) == BFLOAT else "int32", transpose, multiply)


def _matrices(
    a: te.Tensor, b: te.Tensor, accumulator: str, transpose: bool, multiply: Callable[..., te.Tensor]
) -> te.Tensor:
    """`multiply` of two (batches of) matrices: a vector becomes one row, and the sum of nothing zero."""
    if len(a.shape) == 1:
        row = te.compute((1, *a.shape), lambda _, k: a(k), name="row")
        product = _matrices(row, b, accumulator, transpose, multiply)
        return te.compute(product.shape[1:], lambda *index: product(0, *index), name="vector")
    columns = b.shape[-2] if transpose else b.shape[-1]
    if extent_of(a.shape[-1]) == 0:
        shape = (*broadcast_shape(a.shape[:-2], b.shape[:-2]), a.shape[-2], columns)
        return te.compute(shape, lambda *_: tirx.const(0, accumulator), name="empty_sum")
    return multiply(a, b, a.shape[:-2] if len(a.shape) >= len(b.shape) else b.shape[:-2], columns)


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
        return with_bias(c, operation, y, channel(operation))
    algorithm = chosen_algorithm(c.target, _algorithms(x, weight, geometry, groups))
    if algorithm != DIRECT:
        transformed = plan_winograd(c.target, x.shape, outputs, geometry, algorithm)
        recipe = f"{algorithm}[{transformed.tile.block}]"
        packed = c.packed(weight, recipe, lambda tensor: pack_winograd_weight(tensor, transformed))
        y = winograd(x, packed, geometry=geometry, out_channels=outputs, plan=transformed)
        return with_bias(c, operation, y, channel(operation))
    if _by_dots(c, x, weight) and groups_fit(c.target, groups, x.shape[-1], outputs, BFLOAT):
        dots = plan_dot_conv(c.target, x.shape, outputs, geometry, groups, BFLOAT)
        pairs = c.packed(weight, f"dot conv{dots.recipe}", lambda tensor: pack_dot_conv_weight(tensor, dots, groups))
        y = dot_conv(x, pairs, geometry=geometry, out_channels=outputs, plan=dots)
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


def _algorithms(x: te.Tensor, weight: Value, geometry: Window, groups: int) -> tuple[str, ...]:
    """What the convolution can be computed by, the default first."""
    known = weight.constant is not None and weight.type.dtype is DType.F32
    return (DIRECT, *TRANSFORMS) if known and fits_winograd(geometry, groups, x.shape, str(x.dtype)) else (DIRECT,)


def _depthwise(
    c: LoweringContext, x: te.Tensor, weight: Value, channels: int, geometry: Window, dtype: DType
) -> te.Tensor:
    tile = depthwise_tile(c.target, x.shape, channels, geometry, tvm_dtype(dtype))
    packed = known_weight(c, weight, "depthwise", pack_depthwise_weight, None)
    return depthwise(
        x, packed, geometry=geometry, tile=tile, accumulator=accumulator_dtype(dtype), masked=has_masks(c.target)
    )


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
