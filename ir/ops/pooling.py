"""Pooling over windows, in any number of spatial dimensions and either layout."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from whet.ir.definition import Axis, Cost, OpDefinition, Tie, moved_bytes, require
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
from whet.ir.types import TensorType


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
    sizes = [
        window_size(x.shape[dim], kernel[i], stride[i], padding[i], dilation[i], ceil)
        for i, dim in enumerate(spatial_dims(x.rank, layout))
    ]
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
    sizes = [
        int(window_size(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i], ceil))
        for i in range(len(kernel))
    ]
    needed = [(size - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 for i, size in enumerate(sizes)]
    grown = tuple(
        (low, max(high, need - x.shape[2 + i] - low))
        for i, ((low, high), need) in enumerate(zip(padding, needed, strict=True))
    )
    x = pad_spatial(x, grown, fill)
    for i, size in enumerate(sizes):
        span = dilation[i] * (kernel[i] - 1) + 1
        x = x.unfold(2 + i, span, stride[i]).narrow(2 + i, 0, size)[..., :: dilation[i]]
        # the taps of this dimension are last; gather all taps there, row-major
        x = x.flatten(-2) if i else x
    return x


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
        lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        taps = windows(to_channels_first(x, layout), kernel, stride, padding, dilation, ceil, lowest)
        return from_channels_first(taps.amax(-1), layout)


class AvgPool(Pooling):
    """Mean of each window. `count_padding`: the declared padding counts into the divisor; `divisor` replaces it."""

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
        ones = (1,) * len(kernel)
        total = windows(x, kernel, stride, padding, ones, ceil, 0.0).sum(-1)
        if divisor is not None:
            return from_channels_first(total / divisor, layout)
        # torch counts positions of the declared padding, never those that ceil mode adds beyond it
        inside = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
        if count_padding:
            inside = pad_spatial(inside, padding, 1.0)
            padding = tuple((0, 0) for _ in kernel)
        count = windows(inside, kernel, stride, padding, ones, ceil, 0.0).sum(-1)
        return from_channels_first(total / count, layout)


class AdaptivePool(Pooling):
    """Windows [⌊i·size/out⌋, ⌈(i+1)·size/out⌉) in every spatial dimension, reduced by mean or maximum."""

    def __init__(self, name: str, maximum: bool) -> None:
        self.name = name
        self._maximum = maximum

    def infer(self, x: TensorType, *, size: tuple[int, ...], layout: str = CHANNELS_FIRST) -> TensorType:
        require_layout(layout)
        require(x.rank == len(size) + 2, f"{x} must be [N, C, *spatial] with {len(size)} spatial dimensions")
        return TensorType(feature_map(x.shape[0], x.shape[channel_dim(x.rank, layout)], size, layout), x.dtype)

    def evaluate(self, x: Tensor, *, size: tuple[int, ...], layout: str = CHANNELS_FIRST) -> Tensor:
        x = to_channels_first(x, layout)
        average = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
        maximum = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
        pool = (maximum if self._maximum else average)[len(size) - 1]
        return from_channels_first(pool(x, size), layout)  # type: ignore[arg-type]


DEFINITIONS: tuple[OpDefinition, ...] = (
    MaxPool(),
    AvgPool(),
    AdaptivePool("adaptive_avg_pool", maximum=False),
    AdaptivePool("adaptive_max_pool", maximum=True),
)
