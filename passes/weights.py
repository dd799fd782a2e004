"""Scaling the weights of linear layers and convolutions by channel, in float64, rounded once."""

from __future__ import annotations

from typing import Final

import torch

from whet.ir.graph import Operation, Value
from whet.ir.ops.contraction import channel_dim
from whet.passes.rewrite.pattern import MatchFailure

LAYERS: Final = ("linear", "conv", "conv_transpose")
"""Operations (x, weight, bias?) that mix channels by a weight."""

STORED_FORMS: Final = {"masked": 0, "lookup": 1, "dequantize": 0, "dequantize_blocks": 0}
"""Operations that make a weight of its stored form -> the operand that has an element for each of the weight's."""


def float64(value: Value) -> torch.Tensor:
    """A constant's tensor in float64. Raises MatchFailure for a value that is no constant."""
    if value.constant is None:
        raise MatchFailure("must be a constant", value)
    return value.constant.double()


def rounded(tensor: torch.Tensor, like: Value) -> torch.Tensor:
    """`tensor` in the dtype of `like`. Raises MatchFailure where that dtype cannot hold it."""
    result = tensor.to(like.type.dtype.torch)
    if not bool(torch.isfinite(result).all()):
        raise MatchFailure("the folded weights would not be finite", like)
    return result


def output_dim(layer: Operation) -> int:
    """The dimension of a layer's result that its output channels lie in."""
    return _channel_dim(layer, layer.result)


def input_dim(layer: Operation) -> int:
    """The dimension of a layer's first operand that its input channels lie in."""
    return _channel_dim(layer, layer.operand(0))


def _channel_dim(layer: Operation, value: Value) -> int:
    last = value.type.rank - 1
    return last if layer.name == "linear" else channel_dim(value.type.rank, layer.attributes["layout"])


def output_channels(layer: Operation) -> int:
    """Number of output channels. Raises MatchFailure where it is symbolic."""
    return _static(layer, output_dim(layer), layer.result)


def input_channels(layer: Operation) -> int:
    """Number of input channels. Raises MatchFailure where it is symbolic."""
    return _static(layer, input_dim(layer), layer.operand(0))


def _static(layer: Operation, dim: int, value: Value) -> int:
    size = value.type.shape[dim]
    if not isinstance(size, int):
        raise MatchFailure("the number of channels must be static", value)
    return size


def scale_outputs(layer: Operation, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The weight that makes output channel o scale[o] times as large."""
    if layer.name == "conv_transpose":
        # [in, out / groups, *kernel]: rows of group g make the channels of group g
        return _by_group(weight, scale, layer.attributes["groups"])
    return weight * scale.reshape(-1, *_ones(weight.dim() - 1))


def scale_inputs(layer: Operation, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The weight that takes input channel i as if it were scale[i] times as large."""
    if layer.name == "conv":
        # [out, in / groups, *kernel]: rows of group g take the channels of group g
        return _by_group(weight, scale, layer.attributes["groups"])
    if layer.name == "conv_transpose":
        return weight * scale.reshape(-1, *_ones(weight.dim() - 1))
    return weight * scale


def _by_group(weight: torch.Tensor, scale: torch.Tensor, groups: int) -> torch.Tensor:
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return (grouped * scale.reshape(groups, 1, -1, *_ones(weight.dim() - 2))).reshape(weight.shape)


def _ones(count: int) -> tuple[int, ...]:
    return (1,) * count


def per_channel(value: Value, rank: int, dim: int, size: int) -> torch.Tensor:
    """One float64 number an index of `dim`, for a constant that broadcasts to `rank` and varies along `dim`
    alone.

    Raises MatchFailure where it is no constant or varies along another dimension too.
    """
    tensor = float64(value)
    shape = (*_ones(rank - tensor.dim()), *tensor.shape)
    if len(shape) != rank or any(length != 1 for index, length in enumerate(shape) if index != dim):
        raise MatchFailure(f"varies along other dimensions than {dim}", value)
    return tensor.reshape(-1).expand(size)


def evaluate_weight(value: Value) -> torch.Tensor | None:
    """The tensor that a weight stands for: a constant, or masked, shared or quantized constants; None for all else."""
    operation = value.producer
    if operation is None:
        return None
    if operation.name == "constant":
        return value.constant
    if operation.name not in STORED_FORMS:
        return None
    operands = [None if operand is None else evaluate_weight(operand) for operand in operation.operands]
    if any(tensor is None and value is not None for tensor, value in zip(operands, operation.operands, strict=True)):
        return None
    with torch.no_grad():
        tensor: torch.Tensor = operation.definition.evaluate(*operands, **operation.attributes)
    return tensor


def is_quantized(value: Value) -> bool:
    """Whether a weight is stored as integers with scales."""
    operation = value.producer
    while operation is not None and operation.name in STORED_FORMS:
        if operation.name.startswith("dequantize"):
            return True
        operation = operation.operand(STORED_FORMS[operation.name]).producer
    return False


def key_of(value: Value) -> str:
    """The name of a weight in the weights file, "" where it has none; in a stored form that of what is stored."""
    operation = value.producer
    assert operation is not None
    while operation.name in STORED_FORMS:
        operation = operation.operand(STORED_FORMS[operation.name]).producer
        assert operation is not None
    key: str = operation.attributes["key"]
    return key


def bias_key(weight: Value) -> str:
    """The name that a bias beside this weight would have had."""
    key = key_of(weight)
    if not key:
        return ""
    return f"{key.removesuffix('weight')}bias" if key.endswith("weight") else f"{key}.bias"
