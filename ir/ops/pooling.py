"""Pooling over windows, in any number of spatial dimensions and either layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from whet.ir.definition import Axis, Cost, OpDefinition, Tie, moved_bytes, require, require_float
from whet.ir.dimensions import Dim
from whet.ir.graph import Operation
from whet.ir.ops.contraction import (
    CHANNELS_FIRST,
    channel_dim,
    feature_map,
    from_channels_first,
    pad_spatial,
    require_layout,
    spatial_dims,
    to_channels_first,
    window_size,
)
from whet.ir.types import DType, TensorType


class Pooling(OpDefinition):
    """Base: channels and batch pass through."""

    def axes(self, operation: Operation) -> list[Tie]:
        channel = channel_dim(operation.result.type.rank, operation.attributes["layout"])
        return [Tie(Axis(0, 0), Axis(-1, 0)), Tie(Axis(0, channel), Axis(-1, channel))]

    def cost(self, operation: Operation) -> Cost:
        kernel = math.prod(operation.attributes.get("kernel", (1,)))
        return Cost(kernel * operation.result.type.numel, moved_bytes(operation))


def pooled_shape(
    x: TensorType,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    ceil: bool,
    layout: str,
) -> tuple[Dim, ...]:
    """Result shape of a pooling window. Raises InferError."""
    require_layout(layout)
    require(x.rank == len(kernel) + 2, f"{x} must be [N, C, *spatial] with {len(kernel)} spatial dimensions")
    require(x.dtype is not DType.BOOL, f"pools numbers, got {x}")
    for name, value in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        require(len(value) == len(kernel), f"{name} {value} must have {len(kernel)} entries")
    sizes = [
        window_size(x.shape[dim], kernel[i], stride[i], padding[i], dilation[i], ceil)
        for i, dim in enumerate(spatial_dims(x.rank, layout))
    ]
    some = all(not isinstance(size, int) or size > 0 for size in sizes)
    require(some, f"window {kernel} is larger than the padded {x}")
    return feature_map(x.shape[0], x.shape[channel_dim(x.rank, layout)], sizes, layout)


def windows(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    ceil: bool,
    fill: float,
) -> Tensor:
    """[N, C, *positions, taps] of a channels-first tensor, positions outside of it filled with `fill`."""
    x, sizes = _padded(x, kernel, stride, padding, dilation, ceil, fill)
    for i, size in enumerate(sizes):
        span = dilation[i] * (kernel[i] - 1) + 1
        x = x.unfold(2 + i, span, stride[i]).narrow(2 + i, 0, size)[..., :: dilation[i]]
        # the taps of this dimension are last; gather all taps there, row-major
        x = x.flatten(-2) if i else x
    return x


def _padded(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    ceil: bool,
    fill: float,
) -> tuple[Tensor, list[int]]:
    """A channels-first tensor grown by all that the windows read, and the number of windows along each dimension."""
    sizes = [
        int(window_size(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i], ceil))
        for i in range(len(kernel))
    ]
    needed = [(size - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 for i, size in enumerate(sizes)]
    grown = tuple(
        (low, max(high, need - x.shape[2 + i] - low))
        for i, ((low, high), need) in enumerate(zip(padding, needed, strict=True))
    )
    return pad_spatial(x, grown, fill), sizes


def _largest(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    ceil: bool,
) -> Tensor:
    """The maximum of each window of a channels-first tensor; the gradient goes to its first maximum."""
    pool = _FLOAT_POOLS.get(len(kernel))
    if pool is None or not x.is_floating_point() or x.numel() == 0:
        lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        return windows(x, kernel, stride, padding, dilation, ceil, lowest).amax(-1)
    grown, sizes = _padded(x, kernel, stride, padding, dilation, ceil, -math.inf)
    # high padding beyond the last window can make room for more of them than there are
    pooled = pool(grown, kernel, stride, 0, dilation)
    for dim, size in enumerate(sizes, start=2):
        pooled = pooled.narrow(dim, 0, size)
    return pooled


# torch's own, many times faster than a reduction over windows, and NaN propagates in them too (numerics.md, R7)
_FLOAT_POOLS: Final[Mapping[int, Callable[..., Tensor]]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class MaxPool(Pooling):
    """Largest element of each window; padding never wins."""

    name = "max_pool"

    def infer(
        self,
        x: TensorType,
        *,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        dilation: tuple[int, ...],
        ceil: bool = False,
        layout: str = CHANNELS_FIRST,
    ) -> TensorType:
        return TensorType(pooled_shape(x, kernel, stride, padding, dilation, ceil, layout), x.dtype)

    def evaluate(
        self,
        x: Tensor,
        *,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        dilation: tuple[int, ...],
        ceil: bool = False,
        layout: str = CHANNELS_FIRST,
    ) -> Tensor:
        largest = _largest(to_channels_first(x, layout), kernel, stride, padding, dilation, ceil)
        return from_channels_first(largest, layout)


class MaxPoolWithIndices(Pooling):
    """`max_pool`, and where each element came from: its row-major index (i64) among all spatial positions of
    x.

    The first of equal elements is taken, in row-major order of the window.
    """

    name = "max_pool_with_indices"

    def infer(
        self,
        x: TensorType,
        *,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        dilation: tuple[int, ...],
        ceil: bool = False,
        layout: str = CHANNELS_FIRST,
    ) -> tuple[TensorType, TensorType]:
        shape = pooled_shape(x, kernel, stride, padding, dilation, ceil, layout)
        return TensorType(shape, x.dtype), TensorType(shape, DType.I64)

    def evaluate(
        self,
        x: Tensor,
        *,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        dilation: tuple[int, ...],
        ceil: bool = False,
        layout: str = CHANNELS_FIRST,
    ) -> tuple[Tensor, Tensor]:
        x = to_channels_first(x, layout)
        lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        taps = windows(x, kernel, stride, padding, dilation, ceil, lowest)
        plane = x.shape[2:]
        positions = torch.arange(math.prod(plane), dtype=torch.float64, device=x.device).reshape(1, 1, *plane)
        sources = windows(positions, kernel, stride, padding, dilation, ceil, -1.0).long().expand(taps.shape)
        best = taps.argmax(-1, keepdim=True)
        # where all elements are the lowest, padding must not be taken for one
        best = torch.where(sources.gather(-1, best) < 0, (sources >= 0).long().argmax(-1, keepdim=True), best)
        values, indices = taps.gather(-1, best).squeeze(-1), sources.gather(-1, best).squeeze(-1)
        return from_channels_first(values, layout), from_channels_first(indices, layout)

    def axes(self, operation: Operation) -> list[Tie]:
        channel = channel_dim(operation.results[0].type.rank, operation.attributes["layout"])
        return [Tie(Axis(0, dim), Axis(slot, dim)) for dim in (0, channel) for slot in (-1, -2)]

    def cost(self, operation: Operation) -> Cost:
        kernel = math.prod(operation.attributes["kernel"])
        return Cost(kernel * operation.results[0].type.numel, moved_bytes(operation))


class AvgPool(Pooling):
    """Mean of each window. `count_padding`: the declared padding counts into the divisor; `divisor` replaces
    it.
    """

    name = "avg_pool"

    def infer(
        self,
        x: TensorType,
        *,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        ceil: bool = False,
        count_padding: bool = True,
        divisor: int | None = None,
        layout: str = CHANNELS_FIRST,
    ) -> TensorType:
        require_float(x=x)
        return TensorType(pooled_shape(x, kernel, stride, padding, (1,) * len(kernel), ceil, layout), x.dtype)

    def evaluate(
        self,
        x: Tensor,
        *,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        ceil: bool = False,
        count_padding: bool = True,
        divisor: int | None = None,
        layout: str = CHANNELS_FIRST,
    ) -> Tensor:
        x = to_channels_first(x, layout)
        total = windows(x, kernel, stride, padding, (1,) * len(kernel), ceil, 0.0).sum(-1)
        if divisor is not None:
            return from_channels_first(total / divisor, layout)
        count = torch.ones((), dtype=torch.int64)
        for i, size in enumerate(total.shape[2:]):
            low, high = padding[i] if count_padding else (0, 0)
            first = torch.arange(size) * stride[i] - padding[i][0]
            # the declared padding counts, never the positions that ceil mode adds beyond it
            along = (first + kernel[i]).clamp(max=x.shape[2 + i] + high) - first.clamp(min=-low)
            count = count.unsqueeze(-1) * along
        # a window without any position has the sum 0
        return from_channels_first(total / count.clamp(min=1).to(total), layout)


class AdaptivePool(Pooling):
    """Windows [⌊i·size/out⌋, ⌈(i+1)·size/out⌉) in every spatial dimension, reduced by mean or maximum."""

    def __init__(self, name: str, maximum: bool) -> None:
        self.name = name
        self._maximum = maximum

    def infer(self, x: TensorType, *, size: tuple[int, ...], layout: str = CHANNELS_FIRST) -> TensorType:
        require_float(x=x)
        return TensorType(_adaptive_shape(x, size, layout), x.dtype)

    def evaluate(self, x: Tensor, *, size: tuple[int, ...], layout: str = CHANNELS_FIRST) -> Tensor:
        pool = (_ADAPTIVE_MAXIMUM if self._maximum else _ADAPTIVE_MEAN)[len(size) - 1]
        return from_channels_first(pool(to_channels_first(x, layout), size), layout)

    def cost(self, operation: Operation) -> Cost:
        return Cost(operation.operand(0).type.numel, moved_bytes(operation))


class AdaptiveMaxPoolWithIndices(Pooling):
    """`adaptive_max_pool`, and the row-major index (i64) of each element among all spatial positions of x."""

    name = "adaptive_max_pool_with_indices"

    def infer(
        self, x: TensorType, *, size: tuple[int, ...], layout: str = CHANNELS_FIRST
    ) -> tuple[TensorType, TensorType]:
        shape = _adaptive_shape(x, size, layout)
        return TensorType(shape, x.dtype), TensorType(shape, DType.I64)

    def evaluate(self, x: Tensor, *, size: tuple[int, ...], layout: str = CHANNELS_FIRST) -> tuple[Tensor, Tensor]:
        values, indices = _ADAPTIVE_MAXIMUM[len(size) - 1](to_channels_first(x, layout), size, return_indices=True)
        return from_channels_first(values, layout), from_channels_first(indices, layout)

    def axes(self, operation: Operation) -> list[Tie]:
        channel = channel_dim(operation.results[0].type.rank, operation.attributes["layout"])
        return [Tie(Axis(0, dim), Axis(slot, dim)) for dim in (0, channel) for slot in (-1, -2)]

    def cost(self, operation: Operation) -> Cost:
        return Cost(operation.operand(0).type.numel, moved_bytes(operation))


def _adaptive_shape(x: TensorType, size: tuple[Dim, ...], layout: str) -> tuple[Dim, ...]:
    require_layout(layout)
    require(
        x.rank == len(size) + 2 and 1 <= len(size) <= 3,
        f"{x} must be [N, C, *spatial] with {len(size)} spatial dimensions",
    )
    return feature_map(x.shape[0], x.shape[channel_dim(x.rank, layout)], size, layout)


_ADAPTIVE_MAXIMUM: tuple[Callable[..., Any], ...] = (
    F.adaptive_max_pool1d,
    F.adaptive_max_pool2d,
    F.adaptive_max_pool3d,
)
_ADAPTIVE_MEAN: tuple[Callable[..., Any], ...] = (
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
)

DEFINITIONS: tuple[OpDefinition, ...] = (
    MaxPool(),
    AvgPool(),
    AdaptivePool("adaptive_avg_pool", maximum=False),
    AdaptivePool("adaptive_max_pool", maximum=True),
    MaxPoolWithIndices(),
    AdaptiveMaxPoolWithIndices(),
)
