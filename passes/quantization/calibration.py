"""Observing activations on calibration data, through the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized

import torch

from whet.errors import PassError
from whet.ir.graph import Graph, Operation, Value
from whet.ir.interpreter import Interpreter
from whet.passes.base import Progress, silent
from whet.passes.data import Batches, Source
from whet.passes.quantization.observers import MinMax, Observer, Range

__all__ = ["Range", "observe", "observe_ranges"]


def observe_ranges(graph: Graph, values: Iterable[Value], source: Source | None) -> dict[Value, Range]:
    """The smallest and largest element of every value over all batches of `source`; see `observe`."""
    return {value: observer.seen for value, observer in observe(graph, values, source, MinMax).items()}


def observe(
    graph: Graph,
    values: Iterable[Value],
    source: Source | None,
    make: Callable[[], Observer],
    progress: Progress = silent,
) -> dict[Value, Observer]:
    """An observer for every value, which saw it in all batches of `source` (see `whet.passes.data.Batches`).

    Raises PassError for no data, for NaN or infinities in the data or in a value, and for values that no batch
    reached.
    """
    observers = {value: make() for value in values}

    def look(value: Value, tensor: torch.Tensor) -> None:
        observer = observers.get(value)
        if observer is None:
            return
        observer.update(tensor)
        if observer.seen.seen and not observer.seen.finite:
            raise PassError(f"{_named(value)} is not finite on the calibration data")

    def hook(operation: Operation, results: tuple[torch.Tensor, ...]) -> None:
        for value, tensor in zip(operation.results, results, strict=True):
            look(value, tensor)

    batches = Batches(source, graph)
    total = len(source) if isinstance(source, Sized) else 0
    interpreter = Interpreter(graph, hook=hook)
    with torch.no_grad():
        for index, batch in enumerate(batches):
            progress("observing calibration data", index, max(total, index + 1))
            interpreter(*batch)
            for value, tensor in zip(graph.inputs, batch, strict=True):
                look(value, tensor)
    for value, observer in observers.items():
        if not observer.seen.seen:
            raise PassError(f"calibration never reached {_named(value)}: every batch left it without an element")
    return observers


def _named(value: Value) -> str:
    where = "" if value.producer is None else f" of {value.producer.name} at {value.producer.location}"
    return f"{value!r}{where}"
