"""Contractions for GPUs: plain sums over unpacked weights, whose tiles are the schedule's business."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from whet.backends.tvm.kernels.contraction import flatten_index, unflatten_index
from whet.backends.tvm.kernels.integer import compensation
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.reduction import accumulator_dtype
from whet.ir.dimensions import same_dim
from whet.ir.graph import Operation
from whet.ir.ops.contraction import CHANNELS_LAST, channel_dim, spatial_dims
from whet.ir.types import DType


def _linear(c: LoweringContext, operation: Operation) -> te.Tensor:
    """Rows flattened to one dimension: the form that matrix schedules know. A pointwise convolution is one too.

    Integers are multiplied as they are stored, and the zero point is taken out of the sum: nvcc then finds four
    products at a time (dp4a).
    """
    value = operation.operand(1)
    x, weight = c.tensor(operation.operand(0)), c.tensor(value)
    lead = list(x.shape[:-1])
    rows: Any = tirx.IntImm("int64", 1)
    for size in lead:
        rows = rows * size
    zero_point = operation.attributes.get("x_zero_point", 0)
    correction = None
    if zero_point and value.constant is not None:
        recipe = f"compensation[{zero_point},0]"
        correction = c.packed(value, recipe, lambda tensor: compensation(tensor, zero_point))
    subtracted = zero_point if correction is None else 0
    working = _accumulator(operation)
    inner = te.reduce_axis((0, weight.shape[1]), name="k")
    taps = [0] * (len(weight.shape) - 2)

    def product(row: Any, column: Any) -> Any:
        item = x(*unflatten_index(row, lead), inner.var) if lead else x(inner.var)
        factor = weight(column, inner.var, *taps).astype(working)
        return te.sum(_centered(item, subtracted, working) * factor, axis=inner)

    flat = te.compute((rows, weight.shape[0]), product, name=operation.name)

    def element(*index: Any) -> Any:
        row = flatten_index(index[:-1], lead) if lead else tirx.IntImm("int64", 0)
        total = flat(row, index[-1])
        if correction is not None:
            total = total + correction(index[-1])
        return _finished(c, operation, total, index[-1])

    return te.compute((*lead, weight.shape[0]), element, name=f"{operation.name}_end")


def _matmul(c: LoweringContext, operation: Operation) -> te.Tensor:
    a, b = c.tensor(operation.operand(0)), c.tensor(operation.operand(1))
    zero_points = (operation.attributes.get(f"{name}_zero_point", 0) for name in ("x", "y"))
    a_zero, b_zero = zero_points
    working = _accumulator(operation)
    inner = te.reduce_axis((0, a.shape[-1]), name="k")
    shape = c.dims(operation.result.type.shape)

    def product(*index: Any) -> Any:
        left = a(*_batch(index, a), index[-2], inner.var)
        right = b(*_batch(index, b), inner.var, index[-1])
        return te.sum(_centered(left, a_zero, working) * _centered(right, b_zero, working), axis=inner)

    total = te.compute(shape, product, name=operation.name)
    dtype = tvm_dtype(operation.result.type.dtype)
    if dtype == working:
        return total
    return te.compute(shape, lambda *index: total(*index).astype(dtype), name="rounded")


def _batch(index: Sequence[Any], tensor: te.Tensor) -> list[Any]:
    """Leading indices of a batched operand, its own dimensions of one held at zero."""
    lead = len(tensor.shape) - 2
    taken = index[len(index) - 2 - lead : len(index) - 2]
    return [
        tirx.IntImm("int64", 0) if isinstance(size, (int, tirx.IntImm)) and int(size) == 1 else item
        for item, size in zip(taken, tensor.shape[:lead], strict=True)
    ]


def _is_pointwise(operation: Operation) -> bool:
    """Whether a convolution is a product of matrices: each output reads the channels of one place."""
    attributes = operation.attributes
    return (
        all(same_dim(size, 1) for size in operation.operand(1).type.shape[2:])
        and all(step == 1 for step in attributes["stride"])
        and not any(amount for pair in attributes["padding"] for amount in pair)
        and attributes["groups"] == 1
        and attributes["layout"] == CHANNELS_LAST
    )


def _conv(c: LoweringContext, operation: Operation) -> te.Tensor:
    if _is_pointwise(operation):
        return _linear(c, operation)
    value, weight_value = operation.operand(0), operation.operand(1)
    attributes = operation.attributes
    x, weight = c.tensor(value), c.tensor(weight_value)
    rank, shape = value.type.rank, value.type.shape
    dims, channel = list(spatial_dims(rank, attributes["layout"])), channel_dim(rank, attributes["layout"])
    zero_point = attributes.get("x_zero_point", 0)
    working = _accumulator(operation)
    outputs, per_group = weight_value.type.shape[0], weight_value.type.shape[1]
    inner = te.reduce_axis((0, c.dim(per_group)), name="ic")
    taps = [te.reduce_axis((0, c.dim(size)), name=f"k{i}") for i, size in enumerate(weight_value.type.shape[2:])]

    def product(*index: Any) -> Any:
        source, inside = list(index), []
        for i, dim in enumerate(dims):
            low, high = attributes["padding"][i]
            source[dim] = index[dim] * attributes["stride"][i] + taps[i].var * attributes["dilation"][i] - low
            inside += [source[dim] >= 0, source[dim] < c.dim(shape[dim])] if low or high else []
        group = tirx.indexdiv(index[channel], c.dim(outputs // attributes["groups"]))
        source[channel] = group * c.dim(per_group) + inner.var
        item = _centered(x(*source), zero_point, working)
        if inside:
            item = tirx.if_then_else(tirx.all(*inside), item, tirx.const(0, working))
        factor = weight(index[channel], inner.var, *(tap.var for tap in taps)).astype(working)
        return te.sum(item * factor, axis=[inner, *taps])

    total = te.compute(c.dims(operation.result.type.shape), product, name=operation.name)

    def element(*index: Any) -> Any:
        return _finished(c, operation, total(*index), index[channel])

    return te.compute(total.shape, element, name=f"{operation.name}_end")


def _accumulator(operation: Operation) -> str:
    dtype = operation.result.type.dtype
    return accumulator_dtype(dtype) if dtype.is_float else tvm_dtype(DType.I32)


def _centered(item: Any, zero_point: int, working: str) -> Any:
    item = item.astype(working)
    return item - tirx.const(zero_point, working) if zero_point else item


def _finished(c: LoweringContext, operation: Operation, total: Any, channel: Any) -> Any:
    """The bias is added to the accumulator, then the result is rounded to its dtype."""
    value = operation.operands[2] if len(operation.operands) > 2 else None
    if value is not None:
        total = total + c.tensor(value)(channel).astype(_accumulator(operation))
    return total.astype(tvm_dtype(operation.result.type.dtype))


LOWERINGS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "linear_integer": _linear,
    "matmul": _matmul,
    "matmul_integer": _matmul,
    "conv": _conv,
    "conv_integer": _conv,
}
