"""Normalizations and softmax: reductions over rows, then one elementwise stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from whet.backends.tvm.kernels import math as fast
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.half import narrowed, widened
from whet.backends.tvm.lowering.reduction import accumulator_dtype, reduce_over
from whet.ir.dimensions import Dim, product
from whet.ir.graph import Operation, Value
from whet.ir.ops.contraction import CHANNELS_FIRST

_ZERO = tirx.IntImm("int64", 0)


def _softmax(logarithm: bool) -> Callable[..., te.Tensor]:
    def lower(c: LoweringContext, operation: Operation) -> te.Tensor:
        value, axis = operation.operand(0), operation.attributes["axis"]
        x, shape = c.tensor(value), value.type.shape
        dtype = tvm_dtype(value.type.dtype)
        if not shape:
            return te.compute([], lambda: tirx.const(0.0 if logarithm else 1.0, dtype), name=operation.name)

        def row(index: Sequence[Any]) -> list[Any]:
            return [_ZERO if dim == axis else i for dim, i in enumerate(index)]

        top = reduce_over(c, shape, [axis], True, lambda *i: widened(x(*i)), te.max, "softmax_max")

        def shifted(*index: Any) -> Any:
            return widened(x(*index)) - top(*row(index))

        if logarithm:
            total = reduce_over(c, shape, [axis], True, lambda *i: fast.exp(shifted(*i)), te.sum, "softmax_sum")

            def log_element(*index: Any) -> Any:
                return narrowed(shifted(*index) - tirx.log(total(*row(index))), dtype)

            return te.compute(c.dims(shape), log_element, name="log_softmax")

        exponential = te.compute(c.dims(shape), lambda *i: fast.exp(shifted(*i)), name="softmax_exp")
        total = reduce_over(c, shape, [axis], True, lambda *i: exponential(*i), te.sum, "softmax_sum")

        def element(*index: Any) -> Any:
            return narrowed(exponential(*index) / total(*row(index)), dtype)

        return te.compute(c.dims(shape), element, name="softmax")

    return lower


def _moments(
    c: LoweringContext, x: te.Tensor, shape: Sequence[Dim], dims: Sequence[int], working: str
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Mean and (biased) variance over `dims` as functions of a full index; two passes, as accuracy wants."""
    count = c.dim(product(shape[dim] for dim in dims))
    number = tirx.const(float(count), working) if isinstance(count, int) else count.astype(working)

    def row(index: Sequence[Any]) -> list[Any]:
        return [_ZERO if dim in dims else i for dim, i in enumerate(index)]

    total = reduce_over(c, shape, dims, True, lambda *i: widened(x(*i)), te.sum, "norm_total")
    mean = te.compute(total.shape, lambda *i: total(*i) / number, name="norm_mean")

    def square(*index: Any) -> Any:
        centered = widened(x(*index)) - mean(*row(index))
        return centered * centered

    squares = reduce_over(c, shape, dims, True, square, te.sum, "norm_squares")
    return (lambda *index: mean(*row(index))), (lambda *index: squares(*row(index)) / number)


def _layer_norm(c: LoweringContext, operation: Operation) -> te.Tensor:
    value, rank = operation.operand(0), operation.attributes["rank"]
    shape, working = value.type.shape, accumulator_dtype(value.type.dtype)
    x = c.tensor(value)
    first = len(shape) - rank
    mean, variance = _moments(c, x, shape, list(range(first, len(shape))), working)
    epsilon = tirx.const(operation.attributes["epsilon"], working)
    one = tirx.const(1.0, working)
    scale, shift = _parameters(c, operation, (1, 2))

    def element(*index: Any) -> Any:
        normalized = (widened(x(*index)) - mean(*index)) * (one / tirx.sqrt(variance(*index) + epsilon))
        return narrowed(_affine(normalized, scale, shift, index[first:], working), tvm_dtype(value.type.dtype))

    return te.compute(c.dims(shape), element, name="layer_norm")


def _rms_norm(c: LoweringContext, operation: Operation) -> te.Tensor:
    value, rank = operation.operand(0), operation.attributes["rank"]
    shape, working = value.type.shape, accumulator_dtype(value.type.dtype)
    x = c.tensor(value)
    first = len(shape) - rank
    dims = list(range(first, len(shape)))
    count = c.dim(product(shape[dim] for dim in dims))
    number = tirx.const(float(count), working) if isinstance(count, int) else count.astype(working)
    epsilon, one = tirx.const(operation.attributes["epsilon"], working), tirx.const(1.0, working)
    (scale,) = _parameters(c, operation, (1,))

    def square(*index: Any) -> Any:
        return widened(x(*index)) * widened(x(*index))

    squares = reduce_over(c, shape, dims, True, square, te.sum, "rms_squares")

    def element(*index: Any) -> Any:
        row = [_ZERO if dim in dims else i for dim, i in enumerate(index)]
        normalized = widened(x(*index)) * (one / tirx.sqrt(squares(*row) / number + epsilon))
        return narrowed(_affine(normalized, scale, None, index[first:], working), tvm_dtype(value.type.dtype))

    return te.compute(c.dims(shape), element, name="rms_norm")


def _group_norm(c: LoweringContext, operation: Operation) -> te.Tensor:
    """The channels are seen as [groups, channels of a group], which only changes how they are indexed."""
    value, groups = operation.operand(0), operation.attributes["groups"]
    shape, working = value.type.shape, accumulator_dtype(value.type.dtype)
    x = c.tensor(value)
    channel = 1 if operation.attributes["layout"] == CHANNELS_FIRST else len(shape) - 1
    size = shape[channel]
    if not isinstance(size, int):
        raise c.unsupported("group_norm needs a static number of channels")
    inner = size // groups
    split = (shape[0], groups, *(shape[dim] for dim in range(1, len(shape)) if dim != channel), inner)

    def grouped(batch: Any, group: Any, *rest: Any) -> Any:
        return x(*_regrouped(batch, group, rest, channel, inner))

    mean, variance = _moments_of(c, grouped, split, list(range(2, len(split))), working)
    epsilon, one = tirx.const(operation.attributes["epsilon"], working), tirx.const(1.0, working)
    scale, shift = _parameters(c, operation, (1, 2))

    def element(*index: Any) -> Any:
        row = (index[0], tirx.indexdiv(index[channel], inner))
        normalized = (widened(x(*index)) - mean(*row)) * (one / tirx.sqrt(variance(*row) + epsilon))
        return narrowed(_affine(normalized, scale, shift, (index[channel],), working), tvm_dtype(value.type.dtype))

    return te.compute(c.dims(shape), element, name="group_norm")


def _regrouped(batch: Any, group: Any, rest: Sequence[Any], channel: int, inner: int) -> list[Any]:
    position = [batch, *rest[:-1]]
    position.insert(channel, group * inner + rest[-1])
    return position


def _moments_of(
    c: LoweringContext, read: Callable[..., Any], shape: Sequence[Dim], dims: Sequence[int], working: str
) -> tuple[te.Tensor, Callable[..., Any]]:
    count = c.dim(product(shape[dim] for dim in dims))
    number = tirx.const(float(count), working) if isinstance(count, int) else count.astype(working)
    total = reduce_over(c, shape, dims, False, lambda *i: widened(read(*i)), te.sum, "norm_total")
    mean = te.compute(total.shape, lambda *i: total(*i) / number, name="norm_mean")

    def square(*index: Any) -> Any:
        centered = widened(read(*index)) - mean(index[0], index[1])
        return centered * centered

    squares = reduce_over(c, shape, dims, False, square, te.sum, "norm_squares")
    return mean, lambda *row: squares(*row) / number


def _batch_norm(c: LoweringContext, operation: Operation) -> te.Tensor:
    """What no pass has folded: statistics that are state, or a norm with nothing to fold into."""
    value, axis = operation.operand(0), operation.attributes["axis"]
    working = accumulator_dtype(value.type.dtype)
    x = c.tensor(value)
    mean, variance = c.tensor(operation.operand(1)), c.tensor(operation.operand(2))
    scale, shift = _parameters(c, operation, (3, 4))
    epsilon, one = tirx.const(operation.attributes["epsilon"], working), tirx.const(1.0, working)

    def element(*index: Any) -> Any:
        channel = index[axis]
        inverse = one / tirx.sqrt(widened(variance(channel)).astype(working) + epsilon)
        normalized = (widened(x(*index)) - widened(mean(channel)).astype(working)) * inverse
        return narrowed(_affine(normalized, scale, shift, (channel,), working), tvm_dtype(value.type.dtype))

    return te.compute(c.dims(value.type.shape), element, name="batch_norm")


def _parameters(c: LoweringContext, operation: Operation, slots: Sequence[int]) -> list[te.Tensor | None]:
    present: list[Value | None] = [
        operation.operands[slot] if slot < len(operation.operands) else None for slot in slots
    ]
    return [None if value is None else c.tensor(value) for value in present]


def _affine(x: Any, scale: te.Tensor | None, shift: te.Tensor | None, index: Sequence[Any], working: str) -> Any:
    if scale is not None:
        x = x * widened(scale(*index)).astype(working)
    return x if shift is None else x + widened(shift(*index)).astype(working)


LOWERINGS: dict[str, Callable[..., Any]] = {
    "softmax": _softmax(logarithm=False),
    "log_softmax": _softmax(logarithm=True),
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
}
