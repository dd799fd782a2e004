"""How operations compute while a graph is trained, where that is not what they mean afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from whet.errors import PassError
from whet.ir.graph import Operation
from whet.ir.interpreter import Evaluator
from whet.passes.recovery.distributed import Processes, sum_over_processes

MOMENTUM: Final = 0.1
"""Weight of a batch in the running statistics, as in PyTorch."""


def training_forms(processes: Processes, freeze_batch_norm: bool) -> Mapping[str, Evaluator]:
    """Evaluators for the interpreter, by operation name."""
    forms: dict[str, Evaluator] = {"lookup": _lookup}
    if not freeze_batch_norm:
        forms["batch_norm"] = _batch_norm if processes.count == 1 else _synchronized_batch_norm
    return forms


def _lookup(operation: Operation, codebook: Tensor, indices: Tensor) -> Tensor:
    """As its `evaluate`; the gradient by index_select is a plain sum, and much faster."""
    return codebook.index_select(0, indices.reshape(-1).int()).reshape(indices.shape)


def _has_statistics(operation: Operation) -> bool:
    """Statistics that the graph computes, or keeps as state, are not ours to estimate."""
    return all(operation.operand(slot).constant is not None for slot in (1, 2))


def _batch_norm(
    operation: Operation,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    axis: int,
    epsilon: float,
) -> Tensor:
    """Statistics of the batch; `mean` and `variance`, the trainer's own copies, move towards them in place
    (Ioffe & Szegedy 2015).
    """
    if not _has_statistics(operation):
        result: Tensor = operation.definition.evaluate(x, mean, variance, weight, bias, axis=axis, epsilon=epsilon)
        return result
    _require_several(operation, x.numel() // x.shape[axis])
    channels_first = x.movedim(axis, 1)
    y = F.batch_norm(channels_first, mean, variance, weight, bias, training=True, momentum=MOMENTUM, eps=epsilon)
    return y.movedim(1, axis)


def _synchronized_batch_norm(
    operation: Operation,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    axis: int,
    epsilon: float,
) -> Tensor:
    """The same over the rows of all processes. Two sums: squares of centered values cancel nothing."""
    if not _has_statistics(operation):
        result: Tensor = operation.definition.evaluate(x, mean, variance, weight, bias, axis=axis, epsilon=epsilon)
        return result
    others = [dim for dim in range(x.dim()) if dim != axis]
    shape = [-1 if dim == axis else 1 for dim in range(x.dim())]
    wide = x.float()
    mine = torch.tensor(float(x.numel() // x.shape[axis]))
    count = float(sum_over_processes(mine))
    _require_several(operation, int(count))
    batch_mean = sum_over_processes(wide.sum(others)) / count
    centered = wide - batch_mean.reshape(shape)
    batch_variance = sum_over_processes(centered.square().sum(others)) / count
    with torch.no_grad():
        mean.lerp_(batch_mean.detach().to(mean.dtype), MOMENTUM)
        variance.lerp_(batch_variance.detach().to(variance.dtype) * (count / (count - 1)), MOMENTUM)
    scale = (batch_variance + epsilon).rsqrt()
    y = centered * (scale if weight is None else scale * weight).reshape(shape)
    return (y if bias is None else y + bias.reshape(shape)).to(x.dtype)


def _require_several(operation: Operation, count: int) -> None:
    if count < 2:
        raise PassError(
            f"{operation!r} at {operation.location} has one value a channel in a train batch, of which there is no "
            "variance: give larger batches, or freeze_batch_norm=True"
        )
