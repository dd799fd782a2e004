"""Observing the ranges of activations on calibration data, through the interpreter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from whet.errors import PassError
from whet.ir.graph import Graph, Operation, Value
from whet.ir.interpreter import Interpreter


@dataclass
class Range:
    """Smallest and largest element seen."""

    minimum: float = float("inf")
    maximum: float = float("-inf")

    @property
    def seen(self) -> bool:
        return self.minimum <= self.maximum

    def update(self, tensor: torch.Tensor) -> None:
        if tensor.numel():
            low, high = torch.aminmax(tensor.detach())
            self.minimum, self.maximum = min(self.minimum, low.item()), max(self.maximum, high.item())


def observe_ranges(graph: Graph, values: Iterable[Value], batches: Any) -> dict[Value, Range]:
    """The range of every value over all batches (tuples of tensors in the order of `graph.inputs`).

    Raises PassError for no data, for NaN or infinities in the data, and for values that no batch reached.
    """
    ranges = {value: Range() for value in values}

    def hook(operation: Operation, results: tuple[torch.Tensor, ...]) -> None:
        for value, tensor in zip(operation.results, results, strict=True):
            if value in ranges:
                ranges[value].update(tensor)

    interpreter = Interpreter(graph, hook=hook)
    count = 0
    with torch.no_grad():
        for count, batch in enumerate(_checked(batches), start=1):
            for value, tensor in zip(graph.inputs, batch, strict=False):
                if value in ranges:
                    ranges[value].update(tensor)
            interpreter(*batch)
    if count == 0:
        raise PassError(
            "calibration data is empty: pass a list of input tuples, or a factory, not a spent generator"
        )
    for value, found in ranges.items():
        if not found.seen:
            raise PassError(f"calibration never reached {value!r}")
        if not (abs(found.minimum) < float("inf") and abs(found.maximum) < float("inf")):
            raise PassError(f"{value!r} is not finite on the calibration data")
    return ranges


def _checked(batches: Any) -> Iterable[tuple[torch.Tensor, ...]]:
    if batches is None:
        raise PassError(
            "static quantization needs calibration data: whet.optimize(..., calibration=[(input, ...), ...])"
        )
    for index, batch in enumerate(batches() if callable(batches) else batches):
        tensors = (batch,) if isinstance(batch, torch.Tensor) else tuple(batch)
        for tensor in tensors:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise PassError(f"calibration batch {index} has NaN or infinite elements")
        yield tensors
