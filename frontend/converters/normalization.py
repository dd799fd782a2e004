"""Normalizations and softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.errors import CaptureError
from whet.frontend.context import Context
from whet.ir.graph import Value
from whet.ir.types import TensorType

aten = torch.ops.aten


def _in_one_dtype(c: Context, x: Value, parameters: Sequence[Value | None], compute: Callable[..., Value]) -> Value:
    """`compute` with every operand in the dtype of them together (f32 statistics of an f16 input), cast
    back."""
    present = [value for value in parameters if value is not None]
    dtype = c.promoted(x, *present)
    cast = [None if value is None else c.cast(value, dtype) for value in parameters]
    return c.cast(compute(c.cast(x, dtype), *cast), x.type.dtype)


def _batch_norm(
    c: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    momentum: float,
    epsilon: float,
    *_: Any,
) -> Value:
    if training and mean is not None:
        _refuse_training(c)
    if mean is None or variance is None:
        return _batch_statistics(c, x, weight, bias, epsilon)

    def compute(x: Value, mean: Value, variance: Value, weight: Value | None, bias: Value | None) -> Value:
        axis = min(1, x.type.rank - 1)
        result: Value = c.batch_norm(x, mean, variance, weight, bias, axis=axis, epsilon=float(epsilon))
        return result

    return _in_one_dtype(c, x, (mean, variance, weight, bias), compute)


def _refuse_training(c: Context) -> None:
    raise CaptureError(
        f"{c.target} at {c.builder.location} updates its running statistics: the program was exported in "
        f"training mode; "
        "call model.eval() before torch.export"
    )


def _batch_statistics(c: Context, x: Value, weight: Value | None, bias: Value | None, epsilon: float) -> Value:
    """Normalization by mean and variance of this very batch (a batch norm without running statistics)."""

    def compute(x: Value, weight: Value | None, bias: Value | None) -> Value:
        dims = tuple(dim for dim in range(x.type.rank) if dim != 1)
        column = (1, x.type.shape[1], *([1] * (x.type.rank - 2)))
        centered = c.sub(x, c.mean(x, dims=dims, keepdims=True))
        variance = c.mean(c.mul(centered, centered), dims=dims, keepdims=True)
        y: Value = c.mul(centered, c.rsqrt(c.add(variance, float(epsilon))))
        y = y if weight is None else c.mul(y, c.reshape(weight, shape=column))
        return y if bias is None else c.add(y, c.reshape(bias, shape=column))

    return _in_one_dtype(c, x, (weight, bias), compute)


Statistics = Callable[..., tuple[Value, tuple[int, ...], float]]
"""From an operator's arguments: what is normalized, over which dimensions, and the epsilon."""


def _with_statistics(convert: Callable[..., Value], statistics: Statistics) -> Callable[..., tuple[Any, ...]]:
    """An operator that also returns mean and 1 / standard deviation, empty ones where the statistics were given."""

    def converted(c: Context, *arguments: Any) -> tuple[Any, ...]:
        result = convert(c, *arguments)
        if not any(c.used[1:]):
            return result, *([None] * (len(c.result_types) - 1))
        if all(type is None or type.shape == (0,) for type in c.result_types[1:3]):
            return result, *(_empty(c, type) for type in c.result_types[1:])
        x, dims, epsilon = statistics(c, *arguments)
        mean, scale = _mean_and_scale(c, x, dims, epsilon)
        computed = zip((mean, scale), c.result_types[1:3], strict=True)
        others = (_empty(c, type) for type in c.result_types[3:])
        return result, *(None if type is None else _as(c, value, type) for value, type in computed), *others

    return converted


def _batch_norm_functional(
    c: Context, x: Value, weight: Any, bias: Any, mean: Value, variance: Value, *rest: Any
) -> tuple[Any, ...]:
    """The running statistics come out as they went in."""
    first = _with_statistics(_batch_norm, _over_channels)(c, x, weight, bias, mean, variance, *rest)[:3]
    return *first, mean, variance


def _mean_and_scale(c: Context, x: Value, dims: tuple[int, ...], epsilon: float) -> tuple[Value, Value]:
    mean = c.mean(x, dims=dims, keepdims=True)
    centered = c.sub(x, mean)
    variance = c.mean(c.mul(centered, centered), dims=dims, keepdims=True)
    return mean, c.rsqrt(c.add(variance, float(epsilon)))


def _as(c: Context, value: Value, type: TensorType) -> Value:
    return c.cast(c.reshape_to(value, type.shape), type.dtype)


def _first_of(convert: Callable[..., Value]) -> Callable[..., tuple[Any, ...]]:
    """An operator that also returns statistics, which are empty or unused in inference."""

    def with_statistics(c: Context, *arguments: Any) -> tuple[Any, ...]:
        return convert(c, *arguments), *(_empty(c, type) for type in c.result_types[1:])

    return with_statistics


def _empty(c: Context, type: TensorType | None) -> Value | None:
    """Statistics without elements; those that have some are not computed."""
    if type is None or type.shape != (0,):
        return None
    result: Value = c.full(shape=(0,), value=0.0, dtype=type.dtype)
    return result


def _over_channels(c: Context, x: Value, *arguments: Any) -> tuple[Value, tuple[int, ...], float]:
    return x, tuple(dim for dim in range(x.type.rank) if dim != 1), arguments[-1]


def _over_groups(
    c: Context, x: Value, weight: Any, bias: Any, n: Any, channels: Any, positions: Any, groups: int, epsilon: float
) -> tuple[Value, tuple[int, ...], float]:
    return c.reshape(x, shape=(n, groups, channels // groups * positions)), (2,), epsilon


def _over_last(
    c: Context, x: Value, shape: Sequence[int], weight: Any, bias: Any, epsilon: float
) -> tuple[Value, tuple[int, ...], float]:
    return x, tuple(range(x.type.rank - len(shape), x.type.rank)), epsilon


def _batch_norm_inference(c: Context, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any) -> Value:
    return _batch_norm(c, x, weight, bias, mean, variance, False, *rest)


def _batch_norm_no_statistics(c: Context, x: Value, weight: Any, bias: Any, training: bool, *rest: Any) -> Value:
    return _batch_norm(c, x, weight, bias, None, None, training, *rest)


def _instance_norm(
    c: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    use_input_statistics: bool,
    momentum: float,
    epsilon: float,
    *_: Any,
) -> Value:
    """With running statistics a batch norm, else a group norm with one channel a group."""
    if not use_input_statistics:
        return _batch_norm(c, x, weight, bias, mean, variance, False, momentum, epsilon)
    if mean is not None:
        _refuse_training(c)
    channels = x.type.shape[1]
    if not isinstance(channels, int):
        raise CaptureError(
            f"instance_norm at {c.builder.location} has {channels} channels: their number must be static"
        )
    return _group_norm(c, x, channels, weight, bias, epsilon)


def _group_norm(
    c: Context,
    x: Value,
    groups: int,
    weight: Value | None,
    bias: Value | None,
    epsilon: float = 1e-5,
    *_: Any,
) -> Value:
    def compute(x: Value, weight: Value | None, bias: Value | None) -> Value:
        result: Value = c.group_norm(x, weight, bias, groups=groups, epsilon=float(epsilon))
        return result

    return _in_one_dtype(c, x, (weight, bias), compute)


def _native_group_norm(
    c: Context,
    x: Value,
    weight: Any,
    bias: Any,
    n: Any,
    channels: Any,
    positions: Any,
    groups: int,
    epsilon: float,
) -> Value:
    return _group_norm(c, x, groups, weight, bias, epsilon)


def _layer_norm(
    c: Context,
    x: Value,
    shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    epsilon: float = 1e-5,
    *_: Any,
) -> Value:
    def compute(x: Value, weight: Value | None, bias: Value | None) -> Value:
        result: Value = c.layer_norm(x, weight, bias, rank=len(shape), epsilon=float(epsilon))
        return result

    return _in_one_dtype(c, x, (weight, bias), compute)


def _rms_norm(
    c: Context, x: Value, shape: Sequence[int], weight: Value | None = None, epsilon: float | None = None
) -> Value:
    limit = torch.finfo(x.type.dtype.torch).eps if epsilon is None else float(epsilon)

    def compute(x: Value, weight: Value | None) -> Value:
        result: Value = c.rms_norm(x, weight, rank=len(shape), epsilon=limit)
        return result

    return c.cast(_in_one_dtype(c, x, (weight,), compute), c.dtype)


def _softmax(name: str) -> Callable[..., Value]:
    def convert(c: Context, x: Value, dim: int, *_: Any) -> Value:
        x = c.cast(x, c.dtype)
        axis = c.dim(dim, x.type.rank)
        if x.type.rank:
            result: Value = getattr(c, name)(x, axis=axis)
            return result
        return c.reshape_to(getattr(c, name)(c.reshape(x, shape=(1,)), axis=0), ())

    return convert


def _safe_softmax(c: Context, x: Value, dim: int, *_: Any) -> Value:
    """Zeros where every element is -inf: a row of attention that sees nothing."""
    weights = _softmax("softmax")(c, x, dim)
    x = c.cast(x, c.dtype)
    axes = (c.dim(dim, x.type.rank),) if x.type.rank else ()
    blind = c.eq(c.amax(x, dims=axes, keepdims=True), c.operand(-float("inf"), c.dtype))
    result: Value = c.where(blind, c.operand(0.0, c.dtype), weights)
    return result


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.batch_norm.default: _batch_norm,
    aten.native_batch_norm.default: _with_statistics(_batch_norm, _over_channels),
    aten.cudnn_batch_norm.default: _first_of(_batch_norm),
    aten._native_batch_norm_legit.default: _with_statistics(_batch_norm, _over_channels),
    aten._native_batch_norm_legit_functional.default: _batch_norm_functional,
    aten._native_batch_norm_legit.no_stats: _with_statistics(_batch_norm_no_statistics, _over_channels),
    aten._native_batch_norm_legit_no_training.default: _first_of(_batch_norm_inference),
    aten._batch_norm_no_update.default: _first_of(_batch_norm_inference),
    aten.instance_norm.default: _instance_norm,
    aten.group_norm.default: _group_norm,
    aten.native_group_norm.default: _with_statistics(_native_group_norm, _over_groups),
    aten.layer_norm.default: _layer_norm,
    aten.native_layer_norm.default: _with_statistics(_layer_norm, _over_last),
    aten.rms_norm.default: _rms_norm,
    aten._fused_rms_norm.default: _first_of(_rms_norm),
    aten.softmax.int: _softmax("softmax"),
    aten._softmax.default: _softmax("softmax"),
    aten._safe_softmax.default: _safe_softmax,
    aten.log_softmax.int: _softmax("log_softmax"),
    aten._log_softmax.default: _softmax("log_softmax"),
}
