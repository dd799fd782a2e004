"""Scaled dot-product attention, in every form that torch gives it, and the fused multi-head layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from whet.errors import CaptureError
from whet.frontend.context import Context
from whet.ir.dimensions import Dim, same_dim
from whet.ir.graph import Value
from whet.ir.types import DType

aten = torch.ops.aten


def _attention(
    c: Context,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    if dropout:
        raise CaptureError(
            f"{c.target} at {c.builder.location} drops out with probability {dropout}: call model.eval() "
            f"first, and pass "
            "dropout_p=0.0 where the model is not training"
        )
    if mask is not None and mask.type.dtype is not DType.BOOL:
        mask = c.cast(mask, query.type.dtype)
    query, key, value = _matching_heads(c, *_matching_batches(c, query, key, value))
    result: Value = c.attention(query, key, value, mask, causal=causal, scale=None if scale is None else float(scale))
    return result


def _matching_batches(c: Context, *operands: Value) -> list[Value]:
    """As many dimensions, and as large a batch, as the operand with the most has; missing ones come first."""
    ranks = {operand.type.rank for operand in operands}
    if len(ranks) == 1:
        return list(operands)
    widest = max(operands, key=lambda operand: operand.type.rank).type
    batch = widest.shape[:-3]
    aligned = []
    for operand in operands:
        *outer, heads, length, width = (1,) * (widest.rank - operand.type.rank) + operand.type.shape
        x = c.reshape_to(operand, (*outer, heads, length, width))
        aligned.append(c.broadcast_to(x, shape=(*batch, heads, length, width)))
    return aligned


def _matching_heads(c: Context, query: Value, key: Value, value: Value) -> tuple[Value, Value, Value]:
    """As many key as value heads, and not more than query heads: where one of them has a single head, it is
    repeated."""
    if query.type.rank < 3:
        return query, key, value
    counts = [operand.type.shape[-3] for operand in (query, key, value)]
    shared = next((count for count in counts[1:] if not same_dim(count, 1)), 1)
    wanted = (shared if same_dim(counts[0], 1) else counts[0], shared, shared)
    query, key, value = (_with_heads(c, item, count) for item, count in zip((query, key, value), wanted, strict=True))
    return query, key, value


def _with_heads(c: Context, x: Value, heads: Dim) -> Value:
    *batch, present, length, width = x.type.shape
    if same_dim(present, heads) or not same_dim(present, 1):
        return x
    result: Value = c.broadcast_to(x, shape=(*batch, heads, length, width))
    return result


def _fused(*names: str) -> Callable[..., tuple[Any, ...]]:
    """A fused kernel whose arguments after query, key and value are `names`; only its first result means
    something."""

    def convert(c: Context, query: Value, key: Value, value: Value, *arguments: Any) -> tuple[Any, ...]:
        given = dict(zip(names, arguments, strict=True))
        output = _attention(c, query, key, value, given.get("mask"), given["dropout"], given["causal"], given["scale"])
        return output, *([None] * (len(c.result_types) - 1))

    return convert


def _multi_head(
    c: Context,
    query: Value,
    key: Value,
    value: Value,
    width: int,
    heads: int,
    qkv_weight: Value,
    qkv_bias: Value,
    output_weight: Value,
    output_bias: Value,
    mask: Value | None = None,
    need_weights: bool = True,
    average_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Value, Value | None]:
    """The fused self-attention of nn.MultiheadAttention; query, key and value are the same tensor."""
    if not (query is key and key is value):
        raise CaptureError(
            f"{c.target} at {c.builder.location} attends to another sequence: call "
            "torch.backends.mha.set_fastpath_enabled(False) before torch.export"
        )
    batch, length = query.type.shape[:2]
    joined = c.linear(query, qkv_weight, qkv_bias)
    split = c.reshape(joined, shape=(batch, length, 3, heads, width // heads))
    parts = c.transpose(split, permutation=(2, 0, 3, 1, 4))
    q, k, v = (_part(c, parts, index) for index in range(3))
    allowed = None if mask is None else _allowed(c, mask, batch, length, mask_type)
    y = c.transpose(c.attention(q, k, v, allowed), permutation=(0, 2, 1, 3))
    output: Value = c.linear(c.reshape(y, shape=(batch, length, width)), output_weight, output_bias)
    if not need_weights:
        return output, None
    scores = c.mul(c.matmul(q, c.transpose(k, permutation=(0, 1, 3, 2))), float((width // heads) ** -0.5))
    if allowed is not None:
        scores = c.where(allowed, scores, c.builder.scalar(-float("inf"), scores.type.dtype))
    weights = c.softmax(scores, axis=3)
    return output, c.mean(weights, dims=(1,)) if average_weights else weights


def _part(c: Context, parts: Value, index: int) -> Value:
    shape = parts.type.shape
    piece = c.slice(parts, starts=(index, 0, 0, 0, 0), stops=(index + 1, *shape[1:]), steps=(1,) * 5)
    result: Value = c.reshape(piece, shape=shape[1:])
    return result


def _allowed(c: Context, mask: Value, batch: Any, length: Any, mask_type: int | None) -> Value:
    """torch marks what does not take part; type 0 is [L, L], 1 [batch, L] over keys, 2 [batch, heads, L,
    L]."""
    shapes = {0: (1, 1, length, length), 1: (batch, 1, 1, length)}
    visible = c.logical_not(c.cast(mask, DType.BOOL))
    return c.reshape_to(visible, shapes.get(1 if mask_type is None else mask_type, mask.type.shape))


def _encoder_layer(
    c: Context,
    x: Value,
    width: int,
    heads: int,
    qkv_weight: Value,
    qkv_bias: Value,
    output_weight: Value,
    output_bias: Value,
    use_gelu: bool,
    norm_first: bool,
    epsilon: float,
    norm_weight_1: Value,
    norm_bias_1: Value,
    norm_weight_2: Value,
    norm_bias_2: Value,
    feed_weight_1: Value,
    feed_bias_1: Value,
    feed_weight_2: Value,
    feed_bias_2: Value,
    mask: Value | None = None,
    mask_type: int | None = None,
) -> Value:
    """The fused nn.TransformerEncoderLayer."""

    def attend(y: Value) -> Value:
        fixed = (
            width,
            heads,
            qkv_weight,
            qkv_bias,
            output_weight,
            output_bias,
            mask,
            False,
            False,
            mask_type,
        )
        return _multi_head(c, y, y, y, *fixed)[0]

    def feed(y: Value) -> Value:
        hidden = c.linear(y, feed_weight_1, feed_bias_1)
        result: Value = c.linear(c.gelu(hidden) if use_gelu else c.relu(hidden), feed_weight_2, feed_bias_2)
        return result

    def norm(y: Value, weight: Value, bias: Value) -> Value:
        result: Value = c.layer_norm(y, weight, bias, epsilon=float(epsilon))
        return result

    first, second = (norm_weight_1, norm_bias_1), (norm_weight_2, norm_bias_2)
    if norm_first:
        x = c.add(x, attend(norm(x, *first)))
        result: Value = c.add(x, feed(norm(x, *second)))
        return result
    x = norm(c.add(x, attend(x)), *first)
    return norm(c.add(x, feed(x)), *second)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.scaled_dot_product_attention.default: _attention,
    aten._scaled_dot_product_flash_attention.default: _fused("dropout", "causal", "debug", "scale"),
    aten._scaled_dot_product_flash_attention_for_cpu.default: _fused("dropout", "causal", "mask", "scale"),
    aten._scaled_dot_product_efficient_attention.default: _fused("mask", "sums", "dropout", "causal", "scale"),
    aten._scaled_dot_product_cudnn_attention.default: _fused("mask", "sums", "dropout", "causal", "debug", "scale"),
    aten._scaled_dot_product_fused_attention_overrideable.default: _fused(
        "mask", "dropout", "causal", "debug", "scale"
    ),
    aten._scaled_dot_product_attention_math.default: _fused(
        "mask", "dropout", "causal", "dropout_mask", "scale", "enable_gqa"
    ),
    aten._native_multi_head_attention.default: _multi_head,
    aten._transformer_encoder_layer_fwd.default: _encoder_layer,
}
