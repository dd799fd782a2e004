"""What the cases that classify small pictures have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import splits
from benchmarks.baselines import load_baseline
from benchmarks.cases.case import Metric, Module, Workshop, paired, right
from whet.frontend import import_model
from whet.ir import Graph
from whet.passes import Context, Pass, PassManager

ACCURACY = "accuracy %"
LARGEST_BATCH = 4096

mnist = functools.cache(splits.mnist)
cifar10 = functools.cache(splits.cifar10)


def baseline_graph(name: str, data: Callable[[], splits.Splits]) -> Graph:
    """A trained baseline as a graph with a symbolic batch."""
    return symbolic_batch(load_baseline(name), data().test.images[:2])


def symbolic_batch(model: torch.nn.Module, example: torch.Tensor) -> Graph:
    """A model of one input as a graph for any batch."""
    return import_model(model, (example,), None, ({0: torch.export.Dim("batch", max=LARGEST_BATCH)},))


def compare_accuracy(data: Callable[[], splits.Splits], original: Module, compressed: Module) -> list[Metric]:
    """Accuracy on the whole test set, paired."""
    batches = data().test.batches(1000)
    return [paired(ACCURACY, right(original, batches), right(compressed, batches))]


def first_picture(data: Callable[[], splits.Splits]) -> Mapping[str, np.ndarray]:
    """One test picture, as the argument `x`."""
    return {"x": data().test.images[:1].numpy()}


def validation_accuracy(data: Callable[[], splits.Splits]) -> Callable[[Callable[..., Any]], float]:
    """An `evaluate` on the 1000 held-out pictures."""

    def evaluate(model: Callable[..., Any]) -> float:
        part = data().validation
        scores = torch.cat([model(images) for images, _ in part.batches(250)])
        return float((scores.argmax(1) == part.labels).float().mean()) * 100

    return evaluate


def context(
    data: Callable[[], splits.Splits], workshop: Workshop, batch: int = 128, augment: bool = False, seed: int = 0
) -> Context:
    """Training, calibration and validation data for passes."""
    return Context(
        train=splits.Shuffled(data().train, batch, augment),
        calibration=[(images,) for images, _ in data().calibration.batches(100)],
        evaluate=validation_accuracy(data),
        progress=workshop.progress,
        seed=seed,
    )


def apply(graph: Graph, passes: Sequence[Pass], with_context: Context) -> Graph:
    """The graph after the passes."""
    return PassManager(passes).run(graph, with_context).graph
