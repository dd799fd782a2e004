"""LeNet-300-100 and LeNet-5 on MNIST, as in Deep Compression (Han et al., ICLR 2016): prune, share, entropy-code."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks import splits
from benchmarks.cases.case import Case, Requirement, Workshop
from benchmarks.cases.classification import (
    apply,
    baseline_graph,
    compare_accuracy,
    context,
    first_picture,
    mnist,
)
from whet.ir import Graph
from whet.passes import Distill, QuantizeCodebook, UnstructuredPruning


@dataclass(frozen=True)
class Recipe:
    """How far a network is compressed.

    Attributes:
        ratios: share of the weights removed, by layer.
        bits: of the codebooks, by layer.
        steps: how often it is pruned and recovered on the way to `ratios`.
        epochs: of recovery after each step, after the last step, and for the codebooks.
        rate: the learning rate; a fifth of it for the codebooks.
    """

    ratios: Mapping[str, float]
    bits: Mapping[str, int]
    steps: int
    epochs: tuple[int, int, int]
    rate: float = 0.05


def _recovery(name: str, epochs: int, rate: float, workshop: Workshop) -> Distill:
    """Labels and the original's answers, on pictures that are shifted by up to a pixel."""
    return Distill(
        alpha=0.5,
        epochs=epochs,
        learning_rate=rate,
        weight_decay=5e-4,
        augment=splits.shift,
        checkpoint=str(workshop.folder / name),
    )


def _compress(recipe: Recipe, graph: Graph, workshop: Workshop) -> Graph:
    """Prune in steps with distillation from the original between them, then share the weights and train the codebooks.

    The share of the weights kept falls geometrically: the last steps, which hurt, are the smallest.
    """
    data = context(mnist, workshop)
    data.original = graph
    between, after, codebooks = recipe.epochs
    for step in range(1, recipe.steps + 1):
        ratios = {name: 1.0 - (1.0 - ratio) ** (step / recipe.steps) for name, ratio in recipe.ratios.items()}
        recover = _recovery(f"prune-{step}", after if step == recipe.steps else between, recipe.rate, workshop)
        graph = apply(graph, [UnstructuredPruning(ratios=ratios), recover], data)
    share = QuantizeCodebook(bits=recipe.bits)
    return apply(graph, [share, _recovery("share", codebooks, recipe.rate / 5, workshop)], data)


def _case(name: str, title: str, recipe: Recipe, smaller: float, reference: str) -> Case:
    return Case(
        name,
        title,
        lambda workshop: baseline_graph(name, mnist),
        functools.partial(_compress, recipe),
        functools.partial(compare_accuracy, mnist),
        functools.partial(first_picture, mnist),
        (
            Requirement(f"at least {smaller:.0f} x smaller", lambda result: result.smaller >= smaller),
            Requirement("error not above the baseline's", lambda result: result.metric("accuracy").difference >= 0.0),
        ),
        reference,
    )


CASES = (
    _case(
        "lenet300",
        "LeNet-300-100, MNIST: pruned, shared weights",
        Recipe({"layers.1": 0.944, "layers.3": 0.875, "layers.5": 0.5}, {"*": 5}, steps=4, epochs=(8, 60, 15)),
        40.0,
        "Deep Compression: 40 x, 1.64 -> 1.58 % error",
    ),
    _case(
        "lenet5",
        "LeNet-5 (Caffe), MNIST: pruned, shared weights",
        Recipe(
            {"layers.0": 0.35, "layers.2": 0.88, "layers.5": 0.965, "layers.7": 0.8},
            {"layers.0": 6, "layers.2": 5, "*": 4},
            steps=3,
            epochs=(4, 15, 5),
            rate=0.02,
        ),
        39.0,
        "Deep Compression: 39 x, 0.80 -> 0.74 % error",
    ),
)
