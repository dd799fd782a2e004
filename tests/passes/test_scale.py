"""Graphs of thousands of operations take seconds, and grow in proportion."""

from __future__ import annotations

import time
from typing import Any

from tests.passes.equality import build, count, weight
from whet.ir import Builder, Graph, Value
from whet.passes import AssignLayout, Canonicalize, FoldBatchNorm, PassManager

CONV: dict[str, Any] = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}


def deep(blocks: int) -> Graph:
    """Ten operations a block, constants not counted, most of which something applies to."""

    def body(b: Builder, x: Value) -> Value:
        for index in range(blocks):
            y = b.conv(x, b.constant(weight(4, 4, 3, 3, seed=index)), None, **CONV)
            y = b.batch_norm(y, b.constant(weight(4, seed=index)), b.constant(weight(4) ** 2), None, None)
            y = b.relu(b.relu(y))
            y = b.transpose(y, permutation=(0, 2, 3, 1))
            y = b.mul(y, b.constant(weight(4, seed=index)))
            y = b.transpose(b.tanh(y), permutation=(0, 3, 1, 2))
            y = b.reshape(b.reshape(y, shape=(4, 16)), shape=(1, 4, 4, 4))
            x = b.add(x, y)
        return x

    return build(body, (1, 4, 4, 4))


def test_five_thousand_operations_take_seconds() -> None:
    graph = deep(460)
    assert sum(count(graph).values()) - count(graph)["constant"] > 5000
    start = time.process_time()
    outcome = PassManager([Canonicalize(), FoldBatchNorm(), AssignLayout(), Canonicalize()]).run(graph)
    seconds = time.process_time() - start
    assert seconds < 15, f"{seconds} s\n{outcome.report}"
    assert count(outcome.graph)["transpose"] == 2 and count(outcome.graph)["batch_norm"] == 0
