"""Data-parallel training under `torchrun`: every process computes its share of each batch (gloo, on CPUs)."""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from whet.errors import PassError
from whet.ir.types import DType
from whet.passes.data import TrainingBatch

_PATIENCE = timedelta(days=1)
"""How long processes wait for the first one, which alone evaluates and writes."""


@dataclass(frozen=True)
class Processes:
    """How many processes train together, and which of them this is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that evaluates, writes checkpoints and shows progress."""
        return self.rank == 0

    def share(self, batch: TrainingBatch) -> tuple[TrainingBatch, float]:
        """This process's rows of every tensor of a batch, and the part of the batch that they are.

        Raises PassError for a batch with fewer rows than processes, or tensors of different numbers of rows.
        """
        if self.count == 1:
            return batch, 1.0
        rows = _rows(batch)
        if rows < self.count:
            raise PassError(
                f"{self.count} processes cannot share a train batch of {rows} row(s): give larger batches (drop a "
                "small last one), or start fewer processes"
            )
        start, stop = rows * self.rank // self.count, rows * (self.rank + 1) // self.count
        inputs = tuple(tensor[start:stop] for tensor in batch.inputs)
        return TrainingBatch(inputs, _sliced(batch.labels, start, stop, rows)), (stop - start) / rows

    def parallel(self, module: nn.Module) -> nn.Module:
        """`module`, with gradients that are averaged over the processes (DistributedDataParallel)."""
        if self.count == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, static_graph=True)

    def agree(self, number: float) -> float:
        """The first process's number, in all of them."""
        if self.count == 1:
            return number
        box = torch.tensor(number, dtype=torch.float64)
        dist.broadcast(box, 0)
        return float(box)

    def broadcast(
        self, note: dict[str, Any] | None, tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        """The first process's note (JSON) and tensors, in all of them."""
        if self.count == 1:
            return note, dict(tensors)
        kinds = {name: [DType.of(tensor.dtype).value, list(tensor.shape)] for name, tensor in tensors.items()}
        note, kinds = json.loads(self._broadcast_text(json.dumps([note, kinds])))
        received = {}
        for name, (dtype, shape) in kinds.items():
            mine = tensors[name].contiguous() if self.first else torch.empty(shape, dtype=DType(dtype).torch)
            dist.broadcast(mine, 0)
            received[name] = mine
        return note, received

    def _broadcast_text(self, text: str) -> str:
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        size = torch.tensor(len(data))
        dist.broadcast(size, 0)
        data = data if self.first else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, 0)
        return bytes(data.tolist()).decode()


def processes() -> Processes:
    """The process group that the caller has made, or that `torchrun` asks for; else one process.

    A group is made once and lives until the process ends: making another one meets the addresses of the first.
    """
    if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo", timeout=_PATIENCE)
        atexit.register(dist.destroy_process_group)
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return Processes()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Σ over all processes, differentiable: what one process gets of the result's gradient is the sum over all."""
    result: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return result


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _rows(batch: TrainingBatch) -> int:
    sizes = {int(tensor.shape[0]) if tensor.dim() else 0 for tensor in batch.inputs}
    if len(sizes) != 1:
        raise PassError(f"processes share batches by rows, but the inputs of a train batch have {sorted(sizes)} rows")
    return sizes.pop()


def _sliced(labels: Any, start: int, stop: int, rows: int) -> Any:
    if isinstance(labels, Tensor):
        if labels.dim() == 0 or labels.shape[0] != rows:
            raise PassError(f"labels of shape {list(labels.shape)} do not go with a train batch of {rows} rows")
        return labels[start:stop]
    if isinstance(labels, Mapping):
        return {key: _sliced(item, start, stop, rows) for key, item in labels.items()}
    if isinstance(labels, list | tuple):
        return type(labels)(_sliced(item, start, stop, rows) for item in labels)
    return labels
