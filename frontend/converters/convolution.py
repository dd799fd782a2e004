"""Convolutions, with and without a batch, and transposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.frontend.context import Context
from whet.ir.graph import Value

aten = torch.ops.aten


def spread(values: Sequence[int] | int, spatial: int) -> tuple[int, ...]:
    """One number for each spatial dimension; a single number stands for all."""
    items = [values] if isinstance(values, int) else list(values)
    return tuple(int(item) for item in (items * spatial if len(items) == 1 else items))


def batched(c: Context, x: Value, rank: int, compute: Callable[[Value], Value]) -> Value:
    """Run `compute` on a batch of one where the call had no batch dimension."""
    if x.type.rank == rank:
        return compute(x)
    return c.reshape_to(compute(c.reshape(x, shape=(1, *x.type.shape))), c.shape)


def _conv(
    c: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> Value:
    spatial = weight.type.rank - 2
    steps = spread(dilation, spatial)
    attributes = {
        "stride": spread(stride, spatial),
        "padding": _padding(weight, padding, steps),
        "dilation": steps,
        "groups": groups,
    }
    return batched(c, x, weight.type.rank, lambda batch: c.conv(batch, weight, bias, **attributes))


def _padding(weight: Value, padding: Sequence[int] | str, dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(low, high) pairs; "same" puts the odd element behind, as torch does."""
    spatial = weight.type.rank - 2
    if padding == "valid":
        return ((0, 0),) * spatial
    if not isinstance(padding, str):
        return tuple((amount, amount) for amount in spread(padding, spatial))
    totals = [step * (int(size) - 1) for size, step in zip(weight.type.shape[2:], dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def _conv_transpose(
    c: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Value:
    spatial = weight.type.rank - 2
    attributes = {
        "stride": spread(stride, spatial),
        "padding": spread(padding, spatial),
        "output_padding": spread(output_padding, spatial),
        "dilation": spread(dilation, spatial),
        "groups": groups,
    }
    return batched(c, x, weight.type.rank, lambda batch: c.conv_transpose(batch, weight, bias, **attributes))


def _convolution(
    c: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *_: Any,
) -> Value:
    if transposed:
        return _conv_transpose(c, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv(c, x, weight, bias, stride, padding, dilation, groups)


def _conv_tbc(c: Context, x: Value, weight: Value, bias: Value, pad: int = 0) -> Value:
    """A 1-d convolution over [time, batch, channels] with a weight [time, in, out]."""
    channels_first = c.transpose(x, permutation=(1, 2, 0))
    kernel = c.transpose(weight, permutation=(2, 1, 0))
    y = c.conv(channels_first, kernel, bias, stride=(1,), padding=((pad, pad),), dilation=(1,))
    result: Value = c.transpose(y, permutation=(2, 0, 1))
    return result


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.conv1d.default: _conv,
    aten.conv2d.default: _conv,
    aten.conv3d.default: _conv,
    aten.conv1d.padding: _conv,
    aten.conv2d.padding: _conv,
    aten.conv3d.padding: _conv,
    aten.conv_tbc.default: _conv_tbc,
    aten.conv_transpose1d.default: _conv_transpose,
    aten.conv_transpose2d.input: _conv_transpose,
    aten.conv_transpose3d.input: _conv_transpose,
    aten.convolution.default: _convolution,
    aten._convolution.default: _convolution,
    aten._convolution.deprecated: _convolution,
}
