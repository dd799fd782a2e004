"""Data that passes look at: batches in the structure of the model's call, seen as tuples of graph inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from whet.errors import PassError
from whet.ir.graph import Graph
from whet.runtime.structure import flatten

Source = Iterable[Any] | Callable[[], Iterable[Any]]


class _Batches:
    """Batches of a re-iterable source, as the user gave them; `what` is how messages call it."""

    def __init__(self, source: Source | None, graph: Graph, what: str) -> None:
        if source is None:
            raise PassError(f"this needs {what} data: whet.optimize(..., {what}=[(input, ...), ...])")
        if isinstance(source, Iterator):
            raise PassError(
                f"{what} data is a {type(source).__name__}, which can be read only once: pass a list of input "
                "tuples, or a function that makes the iterator"
            )
        self._source = source
        self._structure = graph.input_structure
        self._count = len(graph.inputs)
        self._what = what

    def raw(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Each batch as a tuple, with its name for messages. Raises PassError where there is none."""
        index = -1
        for index, batch in enumerate(self._source() if callable(self._source) else self._source):
            yield f"{self._what} batch {index}", (batch,) if isinstance(batch, torch.Tensor) else tuple(batch)
        if index < 0:
            raise PassError(
                f"{self._what} data is empty: pass a list of input tuples, or a factory, not a spent generator"
            )

    @property
    def arguments(self) -> int:
        """How many positional arguments the model takes."""
        return self._count if self._structure is None else len(self._structure["items"][0]["items"])

    def flat(self, arguments: tuple[Any, ...], where: str) -> tuple[torch.Tensor, ...]:
        """The graph's inputs out of the model's. Raises PassError for NaN and infinities."""
        tensors = arguments if self._structure is None else tuple(flatten(self._structure, (arguments, {}), where))
        for tensor in tensors:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise PassError(f"{where} has NaN or infinite elements")
        return tensors


class Batches:
    """A re-iterable of tuples of tensors, in the order of `graph.inputs`.

    Args:
        source: a list (or anything that can be iterated again), or a function without arguments that gives an
            iterable. Each batch is the tuple of the model's positional inputs, or one tensor.
        graph: whose inputs the batches feed.

    Raises PassError for None and for a generator, which could be read only once.
    """

    def __init__(self, source: Source | None, graph: Graph) -> None:
        self._batches = _Batches(source, graph, "calibration")

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Raises PassError for no data or non-finite data, InputError for a batch of another structure than the
        model's inputs.
        """
        for where, batch in self._batches.raw():
            yield self._batches.flat(batch, where)


@dataclass(frozen=True)
class TrainingBatch:
    """One step's data: the graph's inputs in order, and what should come out (None: unlabelled)."""

    inputs: tuple[torch.Tensor, ...]
    labels: Any = None


class TrainingBatches:
    """A re-iterable of TrainingBatch: what `train=` gave.

    Args:
        source: as for `Batches`; each batch is (*inputs, labels), what a DataLoader gives, or only the inputs where
            no labels are needed (distillation).
        graph: whose inputs the batches feed.

    Raises PassError for None and for a generator, which could be read only once.
    """

    def __init__(self, source: Source | None, graph: Graph) -> None:
        self._batches = _Batches(source, graph, "train")

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Raises PassError for no data, non-finite inputs and a wrong number of inputs."""
        expected = self._batches.arguments
        for where, batch in self._batches.raw():
            if len(batch) not in (expected, expected + 1):
                raise PassError(
                    f"{where} has {len(batch)} item(s); the model takes {expected} input(s), so give them, and "
                    "one item more for labels"
                )
            labels = batch[expected] if len(batch) > expected else None
            yield TrainingBatch(self._batches.flat(batch[:expected], where), labels)
