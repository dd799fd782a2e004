"""ResNet-20 on CIFAR-10: channels removed, a smaller student, integers, and everything together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cases import saved
from benchmarks.cases.case import INTEGER, Case, Requirement, Workshop
from benchmarks.cases.classification import (
    apply,
    baseline_graph,
    cifar10,
    compare_accuracy,
    context,
    first_picture,
    symbolic_batch,
)
from benchmarks.models.small import ResNetCifar
from whet.ir import Graph
from whet.passes import (
    Budget,
    Context,
    Distill,
    Factorize,
    FineTune,
    QuantizationAware,
    QuantizeStatic,
    StructuredPruning,
)
from whet.passes.pruning.importance import Taylor

STUDENT_WIDTH = 8
STUDENT_EPOCHS = 12
HALF = "resnet20-prune2"
SEEDS = (0, 1, 2)
_TRAIN: dict[str, Any] = {"precision": "bf16", "weight_decay": 5e-4, "schedule": "one-cycle"}
"""Whole trainings; the learning rate rises and falls once (Smith & Topin 2019)."""
_DISTILL: dict[str, Any] = _TRAIN | {"temperature": 4.0, "alpha": 0.3}


def _context(graph: Graph, workshop: Workshop, augment: bool = True, seed: int = 0) -> Context:
    data = context(cifar10, workshop, augment=augment, seed=seed)
    data.original = graph
    return data


def _recovery(epochs: int, workshop: Workshop, rate: float = 0.1, name: str = "recover") -> Distill:
    return Distill(epochs=epochs, learning_rate=rate, checkpoint=str(workshop.folder / name), **_DISTILL)


def _without_channels(kind: str, share: float, graph: Graph, original: Graph) -> StructuredPruning:
    """Channels of `graph` removed, down to a share of what the original has of `kind`."""
    budget = Budget(kind, int(Budget(kind, share).limit(original)))
    return StructuredPruning(criterion=Taylor(batches=64), scope="global", budget=budget, round_to=1)


def _halved(graph: Graph, workshop: Workshop) -> Graph:
    """Channels removed down to half of the FLOPs, then distilled from the original.

    Twice, the second time at half of the rate (a warm restart: Loshchilov & Hutter, ICLR 2017): after once 0.5 pp are
    missing.
    """
    once, again = _recovery(22, workshop), _recovery(24, workshop, rate=0.05, name="again")
    passes = [_without_channels("flops", 0.495, graph, graph), once, again]
    return apply(graph, passes, _context(graph, workshop))


def _half(graph: Graph, workshop: Workshop) -> Graph:
    """What the case of half the FLOPs has made: to go on from there is a second step of pruning."""
    folder = dataclasses.replace(workshop, folder=workshop.folder.with_name(f"case-{HALF}"), train=False)
    return saved.saved_or_made(saved.place(HALF, committed=True), lambda: _halved(graph, folder), anew=False)


def _quartered(graph: Graph, workshop: Workshop) -> Graph:
    """A second half of the FLOPs, after the network has recovered from losing the first."""
    half = _half(graph, workshop)
    passes = [_without_channels("flops", 0.2475, half, graph), _recovery(30, workshop)]
    return apply(half, passes, _context(graph, workshop))


def _int8(graph: Graph, workshop: Workshop) -> Graph:
    return apply(graph, [QuantizeStatic()], _context(graph, workshop))


def _int4(graph: Graph, workshop: Workshop) -> Graph:
    train = QuantizationAware(
        weight_bits=4,
        learned_step=True,
        epochs=2,
        # batch norms are folded: SGD with the rate of a network that has them diverges within an epoch
        optimizer="adamw",
        learning_rate=3e-5,
        precision="bf16",
        checkpoint=str(workshop.folder / "train"),
    )
    return apply(graph, [train], _context(graph, workshop))


def _all_four(graph: Graph, workshop: Workshop) -> Graph:
    """prune -> factorize -> distill -> int8, over one graph."""
    half = _half(graph, workshop)
    passes = [
        _without_channels("parameters", 0.36, half, graph),
        # the last stage has three quarters of the parameters, and a tenth of the activations that factors add to
        Factorize(ratio=0.8, exclude=("stem*", "stages.[0-5].*")),
        _recovery(10, workshop, rate=0.05),
        QuantizeStatic(),
    ]
    return apply(half, passes, _context(graph, workshop))


def _trained(workshop: Workshop) -> Graph:
    return baseline_graph("resnet20", cifar10)


def _student(seed: int) -> Graph:
    torch.manual_seed(seed)
    return symbolic_batch(ResNetCifar(width=STUDENT_WIDTH).eval(), torch.zeros(2, 3, 32, 32))


def _alone(seed: int, workshop: Workshop) -> Graph:
    """The student trained on labels alone, with everything else as for the distilled one."""

    def train() -> Graph:
        recipe = FineTune(epochs=STUDENT_EPOCHS, learning_rate=0.4, checkpoint=str(workshop.folder / "alone"), **_TRAIN)
        student = _student(seed)
        return apply(student, [recipe], _context(student, workshop, seed=seed))

    return saved.saved_or_made(saved.place(f"resnet20-alone-{seed}", committed=True), train, workshop.train)


def _distilled(seed: int, teacher: Graph, workshop: Workshop) -> Graph:
    train = Distill(
        teacher=teacher,
        epochs=STUDENT_EPOCHS,
        learning_rate=0.4,
        checkpoint=str(workshop.folder / "distilled"),
        **_DISTILL,
    )
    student = _student(seed)
    return apply(student, [train], _context(student, workshop, seed=seed))


def _accuracy_case(
    name: str,
    title: str,
    compress: Callable[[Graph, Workshop], Graph],
    requirements: tuple[Requirement, ...],
    reference: str = "-",
    integer: bool = False,
) -> Case:
    return Case(
        name,
        title,
        _trained,
        compress,
        functools.partial(compare_accuracy, cifar10),
        functools.partial(first_picture, cifar10),
        requirements,
        reference,
        integer,
    )


def _loses_at_most(points: float) -> Requirement:
    return Requirement(f"at most {points} pp", lambda result: result.metric("accuracy").difference >= -points - 1e-9)


def _fewer_flops(times: float) -> Requirement:
    return Requirement(f"at least {times:.0f} x fewer FLOPs", lambda result: result.fewer_flops >= times)


def _student_case(seed: int) -> Case:
    """`original` is the student trained on labels alone; `compressed` the same one, distilled."""
    name = f"resnet20-student-{seed}"

    def compress(alone: Graph, workshop: Workshop) -> Graph:
        return _distilled(seed, _trained(workshop), workshop)

    return Case(
        name,
        f"half-width ResNet-20, seed {seed}: trained alone (left) and distilled (right)",
        functools.partial(_alone, seed),
        compress,
        functools.partial(compare_accuracy, cifar10),
        functools.partial(first_picture, cifar10),
        (Requirement("distilled beats alone", lambda result: result.metric("accuracy").difference > 0),),
        "Hinton et al. 2015",
    )


CASES = (
    _accuracy_case(
        HALF,
        "ResNet-20, CIFAR-10: half the FLOPs, channels removed, distilled",
        _halved,
        (_fewer_flops(2.0), _loses_at_most(0.3)),
        "Torch-Pruning ResNet-56: 2.1 x at +0.2",
    ),
    _accuracy_case(
        "resnet20-prune4",
        "ResNet-20, CIFAR-10: a quarter of the FLOPs, channels removed, distilled",
        _quartered,
        (_fewer_flops(4.0), _loses_at_most(1.5)),
    ),
    _accuracy_case(
        "resnet20-int8",
        "ResNet-20, CIFAR-10: static int8",
        _int8,
        (_loses_at_most(0.3), INTEGER),
        "NNCF ResNet-50: 0.2 pp",
        integer=True,
    ),
    _accuracy_case(
        "resnet20-int4",
        "ResNet-20, CIFAR-10: quantization-aware training, int4 weights",
        _int4,
        (_loses_at_most(1.0), INTEGER),
        integer=True,
    ),
    _accuracy_case(
        "resnet20-all",
        "ResNet-20, CIFAR-10: prune, factorize, distill, int8",
        _all_four,
        (
            Requirement("at least 12 x smaller", lambda result: result.smaller >= 12.0),
            _loses_at_most(1.5),
            INTEGER,
        ),
        "nobody combines them on one graph",
        integer=True,
    ),
    *map(_student_case, SEEDS),
)
