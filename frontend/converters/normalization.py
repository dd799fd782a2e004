"""Normalizations and softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.frontend.context import Context
from whet.ir.graph import Value

aten = torch.ops.aten


def _batch_norm_inference(
    c: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    variance: Value,
    momentum: float,
    epsilon: float,
) -> tuple[Value, None, None]:
    """The second and third result are empty in inference."""
    return c.batch_norm(x, mean, variance, weight, bias, axis=1, epsilon=float(epsilon)), None, None


def _layer_norm(
    c: Context,
    x: Value,
    shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    epsilon: float = 1e-5,
    *_: Any,
) -> Value:
    result: Value = c.layer_norm(x, weight, bias, rank=len(shape), epsilon=float(epsilon))
    return result


def _native_layer_norm(c: Context, *arguments: Any) -> tuple[Value, None, None]:
    return _layer_norm(c, *arguments), None, None


def _rms_norm(
    c: Context, x: Value, shape: Sequence[int], weight: Value | None = None, epsilon: float | None = None
) -> Value:
    limit = torch.finfo(x.type.dtype.torch).eps if epsilon is None else float(epsilon)
    result: Value = c.rms_norm(x, weight, rank=len(shape), epsilon=limit)
    return result


def _group_norm(
    c: Context, x: Value, groups: int, weight: Value | None, bias: Value | None, epsilon: float = 1e-5, *_: Any
) -> Value:
    result: Value = c.group_norm(x, weight, bias, groups=groups, epsilon=float(epsilon))
    return result


def _softmax(name: str) -> Callable[..., Value]:
    def convert(c: Context, x: Value, dim: int, *_: Any) -> Value:
        result: Value = getattr(c, name)(c.cast(x, c.dtype), axis=c.dim(dim, x.type.rank))
        return result

    return convert


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten._native_batch_norm_legit_no_training.default: _batch_norm_inference,
    aten.layer_norm.default: _layer_norm,
    aten.native_layer_norm.default: _native_layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.softmax.int: _softmax("softmax"),
    aten._softmax.default: _softmax("softmax"),
    aten.log_softmax.int: _softmax("log_softmax"),
    aten._log_softmax.default: _softmax("log_softmax"),
}
