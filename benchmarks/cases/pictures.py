"""MobileNetV2 on photographs: 240 cats and dogs and 20 pictures of ImageNet; 40 other cats and dogs calibrate."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch

from benchmarks import datasets
from benchmarks.cases.case import INTEGER, Case, Metric, Module, Requirement, Workshop, paired
from benchmarks.cases.classification import apply
from benchmarks.models.trained import load_mobilenet
from whet.frontend import import_model
from whet.ir import Graph
from whet.ir.target import get_target
from whet.passes import Context, QuantizeStatic

CALIBRATION_STEP = 7
"""Every seventh of the 280 cats and dogs calibrates, and is not evaluated."""


@functools.cache
def _prepared() -> tuple[list[np.ndarray], list[tuple[np.ndarray, datasets.Picture]]]:
    pairs = datasets.cats_and_dogs()
    calibration = [datasets.preprocess_imagenet(picture.image) for picture in pairs[::CALIBRATION_STEP]]
    test = [picture for index, picture in enumerate(pairs) if index % CALIBRATION_STEP] + datasets.imagenet_pictures()
    return calibration, [(datasets.preprocess_imagenet(picture.image), picture) for picture in test]


def _original(workshop: Workshop) -> Graph:
    return import_model(load_mobilenet(), (torch.zeros(1, 3, 224, 224),))


def _quantized(graph: Graph, workshop: Workshop) -> Graph:
    calibration = [(torch.from_numpy(image),) for image in _prepared()[0]]
    context = Context(target=get_target("x86"), calibration=calibration, progress=workshop.progress)
    return apply(graph, [QuantizeStatic()], context)


def _decision(scores: datasets.Floats, picture: datasets.Picture) -> str:
    """Cat or dog by the sum over their breeds; for other pictures the first class."""
    if picture.label in ("cat", "dog"):
        return datasets.cat_or_dog(scores)
    first = int(scores.argmax())
    return picture.label if first in picture.classes else f"class {first}"


def _compare(original: Module, compressed: Module) -> list[Metric]:
    decisions = []
    same_class = []
    for image, picture in _prepared()[1]:
        first, second = original(image)[0], compressed(image)[0]
        decisions.append((picture.label, _decision(first, picture), _decision(second, picture)))
        same_class.append(int(first.argmax()) == int(second.argmax()))
    labels, floats, integers = (np.array(column) for column in zip(*decisions, strict=True))
    return [
        paired("grouped top-1 %", floats == labels, integers == labels),
        Metric("grouped decision as float's %", 100.0, 100 * float(np.mean(floats == integers))),
        Metric("first of 1000 classes as float's %", 100.0, 100 * float(np.mean(same_class))),
    ]


def _inputs() -> Mapping[str, np.ndarray]:
    return {"x": _prepared()[1][0][0]}


CASES = (
    Case(
        "mobilenet-int8",
        "MobileNetV2 (trained), static int8",
        _original,
        _quantized,
        _compare,
        _inputs,
        (
            Requirement("at most 1 pp grouped top-1", lambda it: it.metric("grouped top-1").difference >= -1.0),
            Requirement("at least 98 % agreement", lambda it: it.metric("grouped decision").compressed >= 98.0),
            INTEGER,
        ),
        "NNCF MobileNetV2: 0.5 pp",
        integer=True,
        committed=False,
    ),
)
