"""Attributes follow dimensions that shrink: over the table of samples, and where an operation has its own rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.ir.samples import SAMPLES, Sample, randn
from whet.errors import PassError
from whet.ir import Builder, DType, Graph, Interpreter, Operation, TensorType
from whet.ir.coupling import Coupling, dimensions_of
from whet.ir.definition import Axis
from whet.ir.ops import CATALOGUE
from whet.ir.views import tie_graph
from whet.passes.pruning.resize import resize


def alone(sample: Sample) -> Graph:
    """The operation on constants; nothing is an output, so that everything may shrink."""
    graph = Graph()
    builder = Builder(graph)
    operands = [None if item is None else builder.constant(item) for item in sample.operands]
    builder.emit(sample.op, operands, sample.attributes)
    return graph


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)
def test_what_may_go_goes_and_what_is_left_still_fits(sample: Sample) -> None:
    graph = alone(sample)
    coupling = Coupling(tie_graph(graph))
    for strand in coupling.strands:
        for index in sorted({0, strand.size - 1}) if strand.pinned is None and strand.size else ():
            try:
                removed = coupling.close({strand: np.arange(strand.size) == index})
            except PassError:
                continue  # it would take something with it that cannot go
            small = resize(graph, dimensions_of(removed))
            Interpreter(small)()


def operation(op: str, *shapes: tuple[int, ...], **attributes: Any) -> Operation:
    graph = Graph()
    builder = Builder(graph)
    operands = [builder.input(f"x{place}", TensorType.of(randn(*shape))) for place, shape in enumerate(shapes)]
    return builder.emit(op, operands, attributes)


POINTWISE = {"stride": (1,), "padding": ((0, 0),), "dilation": (1,)}
HEADS = ((2, 3, 4), (2, 5, 4), (2, 5, 4))
BLOCKS, STRIDED = (2, 3, 6, 7), (0, 2, 4, 6)


def both(dim: int, *indices: int) -> dict[Axis, tuple[int, ...]]:
    """What is left of one dimension of operand and result."""
    return {Axis(0, dim): indices, Axis(-1, dim): indices}


CASES: list[tuple[Operation, dict[Axis, tuple[int, ...]], dict[str, Any]]] = [
    (
        operation("slice", (8, 3), starts=(2, 0), stops=(6, 3), steps=(1, 1)),
        {Axis(0, 0): (0, 2, 5, 7), Axis(-1, 0): (0, 3)},
        {"starts": (1, 0), "stops": (3, 3)},
    ),
    (
        operation("pad", (4,), padding=((2, 1),)),
        {Axis(0, 0): (0, 3), Axis(-1, 0): (0, 2, 5, 6)},
        {"padding": ((1, 1),)},
    ),
    (
        operation("pad", (6,), padding=((-2, -1),)),
        {Axis(0, 0): (1, 2, 4), Axis(-1, 0): (0, 2)},
        {"padding": ((-1, 0),)},
    ),
    (
        operation("reshape", (2, 12), shape=(2, 3, 4)),
        {Axis(0, 1): (4, 5, 6, 7), Axis(-1, 1): (1,)},
        {"shape": (2, 1, 4)},
    ),
    (
        operation("broadcast_to", (3,), shape=(2, 3)),
        {Axis(0, 0): (0, 2), Axis(-1, 1): (0, 2)},
        {"shape": (2, 2)},
    ),
    (operation("full", shape=(2, 3), value=1.0, dtype=DType.F32), {Axis(-1, 0): (1,)}, {"shape": (1, 3)}),
    (operation("group_norm", (2, 8, 3), groups=4), both(1, *BLOCKS), {"groups": 2}),
    (operation("group_norm", (2, 8, 3), groups=4), both(1, *STRIDED), {"groups": 4}),
    (operation("attention", *HEADS), {Axis(0, 2): (0,), Axis(1, 2): (0,)}, {"scale": 0.5}),
    (operation("attention", *HEADS), {Axis(2, 2): (0,), Axis(-1, 2): (0,)}, {"scale": None}),
    (
        operation("conv", (1, 6, 4), (9, 2, 1), **POINTWISE, groups=3),
        {Axis(0, 1): (0, 1, 4, 5), Axis(1, 0): (0, 1, 2, 6, 7, 8), Axis(-1, 1): (0, 1, 2, 6, 7, 8)},
        {"groups": 2},
    ),
]


@pytest.mark.parametrize("found, kept, changed", CASES, ids=lambda item: getattr(item, "name", ""))
def test_rules_of_operations(found: Operation, kept: dict[Axis, tuple[int, ...]], changed: dict[str, Any]) -> None:
    assert found.definition.resized(found, kept) == found.attributes | changed
    assert found.definition.resized(found, {}) == found.attributes


def test_a_constant_keeps_the_chosen_indices() -> None:
    graph = Graph()
    tensor = randn(3, 4, 5)
    value = Builder(graph).constant(tensor)
    assert value.producer is not None
    kept = {Axis(-1, 0): (0, 2), Axis(-1, 2): (4,)}
    found = CATALOGUE["constant"].resized(value.producer, kept)
    assert torch.equal(found["tensor"], tensor[[0, 2]][:, :, [4]])
