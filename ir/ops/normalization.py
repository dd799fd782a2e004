"""Normalizations and softmax."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from whet.ir.definition import (
    Axis,
    Cost,
    Kept,
    OpDefinition,
    Tie,
    block_ties,
    kept_blocks,
    moved_bytes,
    require,
    require_float,
    require_same_dtype,
    same_rank_ties,
)
from whet.ir.dimensions import same_dim
from whet.ir.graph import Operation
from whet.ir.ops.contraction import CHANNELS_FIRST, from_channels_first, require_layout, to_channels_first
from whet.ir.types import TensorType


class Normalization(OpDefinition):
    """Base: shape and dtype of the first operand; about eight operations an element."""

    def axes(self, operation: Operation) -> list[Tie]:
        return same_rank_ties(operation)

    def cost(self, operation: Operation) -> Cost:
        return Cost(8 * operation.result.type.numel, moved_bytes(operation))


def widened(x: Tensor) -> Tensor:
    """f16 and bf16 as f32: what several steps compute is rounded once, at the end (numerics: R5)."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class BatchNorm(Normalization):
    """(x - mean[c]) / √(variance[c] + epsilon) · weight[c] + bias[c] with running statistics (Ioffe & Szegedy
    2015).

    The channel dimension is `axis`. The statistics are operands (constants, or state), until a pass folds
    them.
    """

    name = "batch_norm"

    def infer(
        self,
        x: TensorType,
        mean: TensorType,
        variance: TensorType,
        weight: TensorType | None = None,
        bias: TensorType | None = None,
        *,
        axis: int = 1,
        epsilon: float = 1e-5,
    ) -> TensorType:
        require_float(x=x)
        require(0 <= axis < x.rank, f"axis {axis} is outside of {x}")
        for name, operand in (("mean", mean), ("variance", variance), ("weight", weight), ("bias", bias)):
            require(
                operand is None or (operand.rank == 1 and same_dim(operand.shape[0], x.shape[axis])),
                f"{name} {operand} must have {x.shape[axis]} elements",
            )
        return x

    def evaluate(
        self,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        axis: int = 1,
        epsilon: float = 1e-5,
    ) -> Tensor:
        # F.batch_norm wants [N, C, ...]: with the channels last, all the rest is the batch.
        rows = x.movedim(axis, -1)
        flat = rows.reshape(-1, rows.shape[-1])
        y = F.batch_norm(flat, mean, variance, weight, bias, training=False, eps=epsilon)
        return y.reshape(rows.shape).movedim(-1, axis)

    def axes(self, operation: Operation) -> list[Tie]:
        axis = operation.attributes["axis"]
        operands = range(1, len(operation.operands))
        present = [slot for slot in operands if operation.operands[slot] is not None]
        return [*same_rank_ties(operation), *(Tie(Axis(slot, 0), Axis(-1, axis)) for slot in present)]


class LayerNorm(Normalization):
    """Zero mean and unit variance over the trailing dimensions that `weight` has (Ba et al. 2016)."""

    name = "layer_norm"

    def infer(
        self,
        x: TensorType,
        weight: TensorType | None = None,
        bias: TensorType | None = None,
        *,
        rank: int = 1,
        epsilon: float = 1e-5,
    ) -> TensorType:
        require(1 <= rank <= x.rank, f"cannot normalize {rank} dimensions of {x}")
        require_trailing(x, rank, weight=weight, bias=bias)
        return x

    def evaluate(
        self,
        x: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        rank: int = 1,
        epsilon: float = 1e-5,
    ) -> Tensor:
        return F.layer_norm(x, x.shape[x.dim() - rank :], weight, bias, epsilon)

    def axes(self, operation: Operation) -> list[Tie]:
        return trailing_ties(operation, operation.attributes["rank"])


class RmsNorm(Normalization):
    """x / √(mean(x²) + epsilon) · weight over the trailing `rank` dimensions (Zhang & Sennrich 2019)."""

    name = "rms_norm"

    def infer(
        self, x: TensorType, weight: TensorType | None = None, *, rank: int = 1, epsilon: float = 1e-6
    ) -> TensorType:
        require(1 <= rank <= x.rank, f"cannot normalize {rank} dimensions of {x}")
        require_trailing(x, rank, weight=weight)
        return x

    def evaluate(self, x: Tensor, weight: Tensor | None = None, *, rank: int = 1, epsilon: float = 1e-6) -> Tensor:
        wide = widened(x)
        y = F.rms_norm(
            wide, list(x.shape[x.dim() - rank :]), None if weight is None else weight.to(wide.dtype), epsilon
        )
        return y.to(x.dtype)

    def axes(self, operation: Operation) -> list[Tie]:
        return trailing_ties(operation, operation.attributes["rank"])


def require_trailing(x: TensorType, rank: int, **operands: TensorType | None) -> None:
    """Guard: x is floating point, and the operands have the trailing `rank` dimensions of x and its dtype."""
    require_float(x=x)
    require_same_dtype(x=x, **operands)
    for name, operand in operands.items():
        fits = operand is None or (operand.rank == rank and all(map(same_dim, operand.shape, x.shape[x.rank - rank :])))
        require(fits, f"{name} {operand} must have the trailing {rank} dimension(s) of {x}")


def trailing_ties(operation: Operation, rank: int) -> list[Tie]:
    """Parameters of `rank` dimensions belong to the trailing dimensions of the result."""
    shift = operation.result.type.rank - rank
    present = [slot for slot in range(1, len(operation.operands)) if operation.operands[slot] is not None]
    return [
        *same_rank_ties(operation),
        *(Tie(Axis(slot, dim), Axis(-1, dim + shift)) for slot in present for dim in range(rank)),
    ]


class GroupNorm(Normalization):
    """Layer norm over the channels of each group and all positions (Wu & He 2018); instance norm is groups =
    C.
    """

    name = "group_norm"

    def infer(
        self,
        x: TensorType,
        weight: TensorType | None = None,
        bias: TensorType | None = None,
        *,
        groups: int,
        epsilon: float = 1e-5,
        layout: str = CHANNELS_FIRST,
    ) -> TensorType:
        require_layout(layout)
        require_same_dtype(x=x, weight=weight, bias=bias)
        require_float(x=x)
        require(x.rank >= 2, f"needs a batch and a channel dimension, got {x}")
        channels = x.shape[1 if layout == CHANNELS_FIRST else -1]
        require(not isinstance(channels, int) or channels % groups == 0, f"{channels} channels, {groups} groups")
        for name, operand in (("weight", weight), ("bias", bias)):
            require(
                operand is None or (operand.rank == 1 and same_dim(operand.shape[0], channels)),
                f"{name} {operand} must have {channels} elements",
            )
        return x

    def evaluate(
        self,
        x: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        groups: int,
        epsilon: float = 1e-5,
        layout: str = CHANNELS_FIRST,
    ) -> Tensor:
        # F.group_norm refuses single positions, which are well defined.
        x = to_channels_first(x, layout)
        wide = widened(x)
        grouped = wide.reshape(x.shape[0], groups, math.prod(x.shape[1:]) // groups)
        y = F.layer_norm(grouped, grouped.shape[2:], None, None, epsilon).reshape(x.shape)
        shape = (1, -1, *([1] * (x.dim() - 2)))
        y = y if weight is None else y * weight.to(y.dtype).reshape(shape)
        y = y if bias is None else y + bias.to(y.dtype).reshape(shape)
        return from_channels_first(y.to(x.dtype), layout)

    def axes(self, operation: Operation) -> list[Tie]:
        rank = operation.result.type.rank
        channel = 1 if operation.attributes["layout"] == CHANNELS_FIRST else rank - 1
        axes = [Axis(0, channel)]
        axes += [Axis(slot, 0) for slot, value in enumerate(operation.operands) if slot and value is not None]
        size, result = operation.result.type.shape[channel], Axis(-1, channel)
        block = int(size) // operation.attributes["groups"] if isinstance(size, int) else 1
        ties = same_rank_ties(operation, excluded=frozenset((channel,)))
        return [*ties, *(tie for axis in axes for tie in block_ties(axis, result, block, int(size)))]

    def resized(self, operation: Operation, kept: Kept) -> dict[str, Any]:
        """Whole groups have gone, or as many channels of each."""
        x, groups = operation.operand(0).type, operation.attributes["groups"]
        channel = 1 if operation.attributes["layout"] == CHANNELS_FIRST else x.rank - 1
        size = x.shape[channel]
        left = kept_blocks(kept, Axis(0, channel), int(size) // groups, groups) if isinstance(size, int) else groups
        return {**operation.attributes, "groups": left}


class Softmax(Normalization):
    """exp(x - max) / Σ exp(x - max) along `axis`."""

    name = "softmax"

    def infer(self, x: TensorType, *, axis: int) -> TensorType:
        require_float(x=x)
        require(0 <= axis < max(x.rank, 1), f"axis {axis} is outside of {x}")
        return x

    def evaluate(self, x: Tensor, *, axis: int) -> Tensor:
        return torch.softmax(x, axis)


class LogSoftmax(Normalization):
    """x - max - log Σ exp(x - max) along `axis`."""

    name = "log_softmax"

    def infer(self, x: TensorType, *, axis: int) -> TensorType:
        require_float(x=x)
        require(0 <= axis < max(x.rank, 1), f"axis {axis} is outside of {x}")
        return x

    def evaluate(self, x: Tensor, *, axis: int) -> Tensor:
        return torch.log_softmax(x, axis)


DEFINITIONS: tuple[OpDefinition, ...] = (
    BatchNorm(),
    LayerNorm(),
    RmsNorm(),
    GroupNorm(),
    Softmax(),
    LogSoftmax(),
)
