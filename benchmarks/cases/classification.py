"""What the cases that classify small pictures have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from benchmarks import splits
from benchmarks.baselines import load_baseline
from benchmarks.cases.case import Metric, Module, Workshop, paired, right
from whet.frontend import import_model
from whet.ir import Graph
from whet.ir.target import get_target
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


def context(
    data: Callable[[], splits.Splits], workshop: Workshop, batch: int = 128, augment: bool = False, seed: int = 0
) -> Context:
    """Training and calibration data for passes.

    There is no `evaluate`: every schedule runs to its end, and the last weights count. A choice of the best of many
    epochs by 1000 pictures would pick by chance.
    """
    return Context(
        target=get_target("x86"),
        train=splits.Shuffled(data().train, batch, augment),
        calibration=[(images,) for images, _ in data().calibration.batches(100)],
        progress=workshop.progress,
        seed=seed,
    )


def apply(graph: Graph, passes: Sequence[Pass], with_context: Context) -> Graph:
    """The graph after the passes."""
    return PassManager(passes).run(graph, with_context).graph
