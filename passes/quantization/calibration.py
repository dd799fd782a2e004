"""Observing activations on calibration data, through the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sized

import torch

from whet.errors import PassError
from whet.ir.graph import Graph, Operation, Value
from whet.ir.interpreter import Interpreter
from whet.passes.base import Context
from whet.passes.data import Batches
from whet.passes.quantization.observers import Observer

Visit = Callable[[Value, torch.Tensor], None]


def watch(graph: Graph, values: Collection[Value], context: Context, visit: Visit, what: str) -> None:
    """Call `visit(value, tensor)` for each of `values` on every calibration batch; `what` is shown as progress.

    Raises PassError for no data, for NaN or infinities in the data or in a value, and for a value that no batch
    reached or that was empty whenever one did.
    """
    wanted, reached = set(values), set[Value]()

    def see(value: Value, tensor: torch.Tensor) -> None:
        if value not in wanted or not tensor.numel():
            return
        if not bool(torch.isfinite(tensor).all()):
            raise PassError(f"{_named(value)} is not finite on the calibration data")
        reached.add(value)
        visit(value, tensor.detach())

    def hook(operation: Operation, results: tuple[torch.Tensor, ...]) -> None:
        for value, tensor in zip(operation.results, results, strict=True):
            see(value, tensor)

    interpreter = Interpreter(graph, hook=hook)
    total = len(context.calibration) if isinstance(context.calibration, Sized) else 0
    with torch.no_grad():
        for count, batch in enumerate(Batches(context.calibration, graph), start=1):
            for value, tensor in zip(graph.inputs, batch, strict=True):
                see(value, tensor)
            interpreter(*batch)
            context.progress(what, count, max(total, count))
    missed = [value for value in values if value not in reached]
    if missed:
        raise PassError(f"calibration never reached {_named(missed[0])}, or it was always empty")


def observe(
    graph: Graph, values: Collection[Value], context: Context, make: Callable[[], Observer]
) -> dict[Value, Observer]:
    """An observer for every value, which saw it in all calibration batches. Raises PassError as `watch` does."""
    observers = {value: make() for value in values}
    watch(
        graph, observers, context, lambda value, tensor: observers[value].update(tensor), "observing calibration data"
    )
    return observers


def _named(value: Value) -> str:
    where = "" if value.producer is None else f" of {value.producer.name} at {value.producer.location}"
    return f"{value!r}{where}"
