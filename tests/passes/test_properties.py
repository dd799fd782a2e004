"""What every pass promises, held over drawn graphs."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.passes.equality import assert_same_results, run_checked
from tests.passes.networks import convolutional_graphs
from tests.strategies import example_inputs, random_graphs
from whet import passes
from whet.ir import Graph, parse_graph, print_graph, verify
from whet.ir.printer import graph_tensors
from whet.passes import (
    AssignLayout,
    Canonicalize,
    CommonSubexpressionElimination,
    ConstantFolding,
    DeadCodeElimination,
    FoldBatchNorm,
    HoistRecurrentProjections,
    MaterializeWeights,
    Pass,
    PassManager,
    UntieStates,
)

PASSES: tuple[Pass, ...] = (
    AssignLayout(),
    Canonicalize(),
    CommonSubexpressionElimination(),
    ConstantFolding(max_bytes=64),
    DeadCodeElimination(),
    FoldBatchNorm(),
    FoldBatchNorm(expand=False),
    HoistRecurrentProjections(),
    MaterializeWeights(),
    UntieStates(),
)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def test_every_deterministic_pass_is_held_to_its_promises() -> None:
    asked_for = {name for name in passes.CATALOGUE if getattr(passes, name).must_change}
    assert {item.name for item in PASSES} | asked_for == set(passes.CATALOGUE)


@pytest.mark.parametrize("item", PASSES, ids=repr)
@QUICK
@given(graph=random_graphs())
def test_on_small_graphs(item: Pass, graph: Graph) -> None:
    run_checked(item, graph, example_inputs(graph))


@pytest.mark.parametrize("item", PASSES, ids=repr)
@QUICK
@given(graph=convolutional_graphs())
def test_on_convolutional_graphs(item: Pass, graph: Graph) -> None:
    run_checked(item, graph)


@settings(QUICK, max_examples=60)
@given(graph=convolutional_graphs())
def test_together(graph: Graph) -> None:
    manager = PassManager(
        [Canonicalize(), FoldBatchNorm(), Canonicalize(), AssignLayout(), Canonicalize()],
        check_unmodified=True,
    )
    result = manager.run(graph).graph
    assert_same_results(graph, result)
    verify(result)
    layouts = {operation.attributes.get("layout") for operation in result.operations}
    assert layouts <= {None, "channels_last"}
    text = print_graph(result)
    assert print_graph(parse_graph(text, graph_tensors(result))) == text
