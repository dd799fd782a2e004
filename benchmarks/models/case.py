"""One model to try: how to build it, what to feed it, and how its outputs are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


def no_kwargs() -> Mapping[str, Any]:
    """The keyword arguments of a model that takes only positional ones."""
    return {}


@dataclass(frozen=True)
class ModelCase:
    """A named model with real or seeded inputs.

    Attributes:
        name: unique over all sources, for example `resnet18` or `timm/resnet26d`.
        source: the library (or `trained`) under which totals are counted.
        build: makes the module in eval mode; the same weights at every call.
        example_inputs: makes the positional arguments; the same values at every call.
        example_kwargs: makes the keyword arguments.
        classifier: whether the first output has class scores in its last dimension; then top-1 is compared.
        calibration: gives that many tuples of positional inputs, real ones, for quantizers to observe; None: seeded
            variants of the example inputs serve (`benchmarks.models.calibration`).
    """

    name: str
    source: str
    build: Callable[[], nn.Module]
    example_inputs: Callable[[], tuple[Any, ...]]
    example_kwargs: Callable[[], Mapping[str, Any]] = no_kwargs
    classifier: bool = False
    calibration: Callable[[int], Sequence[tuple[Any, ...]]] | None = None
