"""Data that passes look at: batches in the structure of the model's call, seen as tuples of graph inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from whet.errors import PassError
from whet.ir.graph import Graph
from whet.runtime.structure import flatten

Source = Iterable[Any] | Callable[[], Iterable[Any]]


class Batches:
    """A re-iterable of tuples of tensors, in the order of `graph.inputs`.

    Args:
        source: a list (or anything that can be iterated again), or a function without arguments that gives an
            iterable. Each batch is the tuple of the model's positional inputs, or one tensor.
        graph: whose inputs the batches feed.

    Raises PassError for a generator, which could be read only once.
    """

    def __init__(self, source: Source, graph: Graph) -> None:
        if isinstance(source, Iterator):
            raise PassError(
                f"calibration data is a {type(source).__name__}, which can be read only once: pass a list of input "
                "tuples, or a function that makes the iterator"
            )
        self._source = source
        self._structure = graph.input_structure

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Raises PassError for non-finite data, InputError for a batch of another structure than the model's inputs."""
        batches = self._source() if callable(self._source) else self._source
        for index, batch in enumerate(batches):
            arguments = (batch,) if isinstance(batch, torch.Tensor) else tuple(batch)
            tensors = self._flat(arguments, index)
            for tensor in tensors:
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise PassError(f"calibration batch {index} has NaN or infinite elements")
            yield tensors

    def _flat(self, arguments: tuple[Any, ...], index: int) -> tuple[torch.Tensor, ...]:
        if self._structure is None:
            return arguments
        return tuple(flatten(self._structure, (arguments, {}), f"calibration batch {index}"))
