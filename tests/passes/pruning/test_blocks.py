"""BlockPruning: whole residual blocks go, those that change least first."""

from __future__ import annotations

import pytest
import torch

import whet
from tests.passes.equality import assert_same_results, build, weight
from tests.passes.pruning.structures import batch_norm, constant, conv, head, linear
from whet.errors import PassError
from whet.ir import Builder, Graph, Location, Value, verify
from whet.passes import BlockPruning, Context, PassManager
from whet.passes.pruning.blocks import find_blocks

SCALES = (1.0, 1e-3, 0.5, 1e-2)
CALIBRATION = Context(calibration=[(weight(2, 3, 4, 4, seed=seed),) for seed in range(2)])


def blocks(b: Builder, x: Value) -> Value:
    """Four residual blocks, their branches times SCALES, and one whose shape changes."""
    y = conv(b, x, 8)
    for number, scale in enumerate(SCALES):
        b.location = Location(f"block.{number}")
        branch = b.relu(batch_norm(b, conv(b, y, 6, key=f"{number}.first")))
        last = b.constant(weight(8, 6, 1, 1) * scale, f"{number}.last")
        branch = b.conv(branch, last, None, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1))
        y = b.add(branch, y) if number % 2 else b.add(y, branch)
    b.location = Location("end")
    y = b.add(conv(b, y, 12), conv(b, y, 12, 1))
    return head(b, y)


def graph_of_blocks() -> Graph:
    return build(blocks, (2, 3, 4, 4))


def left(graph: Graph) -> set[str]:
    """Which blocks have weights."""
    return {value.name[0] for value in graph.constants if value.name.endswith(".last")}


def test_blocks_are_sums_of_a_value_and_what_is_computed_from_it() -> None:
    found = find_blocks(graph_of_blocks())
    assert [{layer.location.module for layer in block.layers} for block in found] == [
        {f"block.{number}"} for number in range(4)
    ]
    assert all(block.sum.result.type == block.skip.type == block.branch.type for block in found)


@pytest.mark.parametrize("criterion", ["similarity", "contribution", "l1"])
def test_blocks_that_change_least_go_first(criterion: str) -> None:
    graph = graph_of_blocks()
    result = BlockPruning(count=2, criterion=criterion)(graph, CALIBRATION)
    verify(result.graph)
    assert result.changes == {"block removed": 2}
    assert left(result.graph) == {"0", "2"}
    assert not any(value.name.startswith(("1.", "3.")) for value in result.graph.constants)


def test_a_branch_of_zeros_goes_exactly() -> None:
    graph = graph_of_blocks()
    for value in graph.constants:
        if value.name == "2.last":
            assert value.constant is not None
            value.constant.zero_()
    result = BlockPruning(ratio=0.25)(graph, CALIBRATION)
    assert left(result.graph) == {"0", "1", "3"}
    assert_same_results(graph, result.graph)


def test_a_branch_that_is_read_elsewhere_keeps_what_is_read() -> None:
    def body(b: Builder, x: Value) -> tuple[Value, Value]:
        hidden = linear(b, x, 8)
        inner = b.relu(linear(b, hidden, 8, key="inner"))
        branch = b.linear(inner, constant(b, 8, 8, key="outer"), None)
        return b.add(hidden, branch), b.sum(inner, dims=(1,))

    graph = build(body, (4, 8))
    result = BlockPruning(criterion="l1", count=1)(graph)
    names = {value.name for value in result.graph.constants}
    assert "inner.weight" in names and "outer" not in names


def test_layers_of_a_transformer_go_and_the_rest_compiles() -> None:
    def body(b: Builder, x: Value) -> Value:
        for number in range(2):
            y = b.layer_norm(x, constant(b, 8), constant(b, 8))
            parts = [b.reshape(linear(b, y, 8, key=f"{name}{number}"), shape=(2, 5, 2, 4)) for name in "qkv"]
            y = b.attention(*(b.transpose(part, permutation=(0, 2, 1, 3)) for part in parts))
            y = b.reshape(b.transpose(y, permutation=(0, 2, 1, 3)), shape=(2, 5, 8))
            x = b.add(x, linear(b, y, 8, key=f"out{number}"))
            x = b.add(x, linear(b, b.gelu(linear(b, x, 16, key=f"up{number}")), 8, key=f"down{number}"))
        return linear(b, x, 3)

    graph = build(body, (2, 5, 8))
    assert len(find_blocks(graph)) == 4
    x = weight(2, 5, 8)
    context = Context(calibration=[(x,)])
    pruned = BlockPruning(ratio=0.5)(graph, context).graph
    compiled = whet.optimize(graph, target="x86", passes=[BlockPruning(ratio=0.5)], calibration=[(x,)])
    (expected,) = whet.ir.Interpreter(pruned)(x)
    torch.testing.assert_close(torch.as_tensor(compiled(x)), expected, rtol=1e-4, atol=1e-5)


def test_excluded_blocks_stay() -> None:
    graph = graph_of_blocks()
    result = BlockPruning(count=1, exclude=("block.1",))(graph, CALIBRATION)
    assert left(result.graph) == {"0", "1", "2"}
    with pytest.raises(PassError, match=r"no layer has a module path like stage\*"):
        BlockPruning(exclude=("stage*",))(graph, CALIBRATION)


def test_removing_nothing_is_the_identity() -> None:
    graph = graph_of_blocks()
    result = BlockPruning(ratio=0.0)(graph, CALIBRATION)
    assert not result.modified and result.graph is graph


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ratio": 1.0}, r"in \[0, 1\); got 1.0"),
        ({"ratio": 0.5, "count": 1}, "a ratio or a count, not both"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"count": 5}, "shall remove 5 blocks, the graph has 4 that can go"),
        ({"criterion": "taylor"}, r"criterion is one of .*; got 'taylor'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PassError, match=message):
        BlockPruning(**options)(graph_of_blocks(), CALIBRATION)  # type: ignore[arg-type]


def test_missing_calibration_and_missing_blocks_are_errors() -> None:
    with pytest.raises(PassError, match="calibration data"):
        BlockPruning()(graph_of_blocks())
    with pytest.raises(PassError, match="could change nothing"):
        PassManager([BlockPruning(criterion="l1")]).run(build(lambda b, x: linear(b, x, 3), (2, 4)))
