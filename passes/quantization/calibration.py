"""Observing the ranges of activations on calibration data, through the interpreter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from whet.errors import PassError
from whet.ir.graph import Graph, Operation, Value
from whet.ir.interpreter import Interpreter
from whet.passes.data import Batches, Source


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


def observe_ranges(graph: Graph, values: Iterable[Value], source: Source | None) -> dict[Value, Range]:
    """The range of every value over all batches of `source` (see `whet.passes.data.Batches`).

    Raises PassError for no data, for NaN or infinities in the data, and for values that no batch reached.
    """
    ranges = {value: Range() for value in values}

    def hook(operation: Operation, results: tuple[torch.Tensor, ...]) -> None:
        for value, tensor in zip(operation.results, results, strict=True):
            if value in ranges:
                ranges[value].update(tensor)

    batches = Batches(source, graph)
    interpreter = Interpreter(graph, hook=hook)
    with torch.no_grad():
        for batch in batches:
            interpreter(*batch)
            for value, tensor in zip(graph.inputs, batch, strict=True):
                if value in ranges:
                    ranges[value].update(tensor)
    for value, found in ranges.items():
        if not found.seen:
            raise PassError(f"calibration never reached {value!r}")
        if not (abs(found.minimum) < float("inf") and abs(found.maximum) < float("inf")):
            raise PassError(f"{value!r} is not finite on the calibration data")
    return ranges
