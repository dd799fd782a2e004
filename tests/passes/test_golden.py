"""The text of small graphs before and after each pass, in tests/golden/."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.passes.equality import build
from whet import passes
from whet.ir import Builder, Graph, Value, print_graph
from whet.passes import Context, Pass

Golden = Callable[[str, str], None]
CONV: dict[str, Any] = {"stride": (2, 2), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}


def ramp(*shape: int) -> torch.Tensor:
    """Numbers that no rounding of another machine changes."""
    return torch.arange(1, 1 + int(torch.Size(shape).numel()), dtype=torch.float32).reshape(shape) / 8


def network(b: Builder, x: Value) -> Any:
    """conv, batch norm, relu; a branch with pooling and a gate; flatten and classify."""
    y = b.conv(x, b.constant(ramp(4, 3, 3, 3), "stem.weight"), None, **CONV, name_hint="stem")
    mean, variance = b.constant(ramp(4), "norm.mean"), b.constant(torch.full((4,), 4.0), "norm.variance")
    y = b.relu(b.batch_norm(y, mean, variance, b.constant(ramp(4), "norm.weight"), None, epsilon=0.0))
    gate = b.sigmoid(b.mean(y, dims=(2, 3), keepdims=True, name_hint="squeezed"))
    y = b.concat(b.mul(y, gate), y, axis=1)
    mean, variance = b.constant(ramp(8), "last.mean"), b.constant(torch.full((8,), 4.0), "last.variance")
    y = b.batch_norm(y, mean, variance, None, None, epsilon=0.0)
    pooled = b.adaptive_avg_pool(y, size=(1, 1))
    features = b.reshape(pooled, shape=(1, 8), name_hint="features")
    return b.linear(features, b.constant(ramp(2, 8), "fc.weight"), b.constant(ramp(2), "fc.bias"))


def tangle(b: Builder, x: Value) -> Any:
    """One of everything that canonicalization tidies up."""
    moved = b.transpose(x, permutation=(1, 0))
    back = b.transpose(b.relu(b.relu(moved)), permutation=(1, 0))
    scaled = b.mul(b.matmul(back, b.constant(ramp(4, 2), "w")), b.add(b.constant(torch.ones(2)), 1.0))
    biased = b.add(scaled, b.constant(ramp(2), "shift"), name_hint="biased")
    left = b.slice(biased, starts=(0, 0), stops=(3, 1), steps=(1, 1))
    right = b.slice(biased, starts=(0, 1), stops=(3, 2), steps=(1, 1))
    b.tanh(right, name_hint="dead")
    joined = b.concat(left, right, axis=1)
    wide = b.broadcast_to(b.reshape(b.reshape(joined, shape=(6,)), shape=(3, 2)), shape=(1, 3, 2))
    return b.add(b.exp(wide), b.exp(wide))


CASES: dict[str, Callable[[], Graph]] = {
    "AssignLayout": lambda: build(network, (1, 3, 8, 8)),
    "Canonicalize": lambda: build(tangle, (3, 4)),
    "CommonSubexpressionElimination": lambda: build(tangle, (3, 4)),
    "ConstantFolding": lambda: build(tangle, (3, 4)),
    "DeadCodeElimination": lambda: build(tangle, (3, 4)),
    "FoldBatchNorm": lambda: build(network, (1, 3, 8, 8)),
}


def printed(graph: Graph) -> str:
    return print_graph(graph, locations=False)


@pytest.mark.parametrize("name", CASES)
def test_the_text_after_the_pass(name: str, golden: Golden) -> None:
    item: Pass = getattr(passes, name)()
    graph = CASES[name]()
    result = item.run(graph, Context())
    assert result.modified
    changes = "\n".join(f"{count} x {what}" for what, count in sorted(result.changes.items()))
    golden(f"passes_{name}.txt", f"{printed(graph)}\n-- {item!r}\n{changes}\n\n{printed(result.graph)}")


def test_the_text_of_the_whole_way(golden: Golden) -> None:
    from whet.passes import AssignLayout, Canonicalize, FoldBatchNorm, PassManager

    stages: list[str] = []
    manager = PassManager(
        [FoldBatchNorm(), Canonicalize(), AssignLayout(), Canonicalize()],
        dump=lambda stage, graph: stages.append(f"-- {stage}\n{printed(graph)}"),
    )
    manager.run(build(network, (1, 3, 8, 8)))
    golden("passes_all.txt", "\n".join(stages))
