"""ClipWeights, in plain, masked and shared weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.passes.equality import build, count, weight
from tests.passes.pruning.models import mlp_graph, weights_of
from whet.errors import PassError
from whet.ir import Builder, Value, verify
from whet.passes import ClipWeights, PassManager, UnstructuredPruning


def test_weights_are_cut_at_the_threshold() -> None:
    graph = mlp_graph()
    result = ClipWeights(threshold=0.1)(graph)
    verify(result.graph)
    for old, new in zip(weights_of(graph).values(), weights_of(result.graph).values(), strict=True):
        assert torch.equal(new, old.clamp(-0.1, 0.1))
    assert [value.name for value in result.graph.constants] == [value.name for value in graph.constants]
    assert not ClipWeights(threshold=0.1)(result.graph).modified


def test_sigma_is_relative_to_each_layer() -> None:
    graph = build(lambda b, x: b.linear(x, b.constant(weight(50, 20) * 3), None), (2, 20))
    (tensor,) = weights_of(ClipWeights(sigma=2.0)(graph).graph).values()
    limit = 2 * (weight(50, 20) * 3).double().std(correction=0)
    assert abs(float(tensor.abs().max()) - float(limit)) < 1e-5


def test_masks_stay() -> None:
    masked = UnstructuredPruning(ratio=0.5)(mlp_graph()).graph
    result = ClipWeights(threshold=0.2)(masked).graph
    assert count(result)["masked"] == 2
    for old, new in zip(weights_of(masked).values(), weights_of(result).values(), strict=True):
        assert torch.equal(new, old.clamp(-0.2, 0.2))


def test_shared_values_are_cut_in_the_codebook() -> None:
    def body(b: Builder, x: Value) -> Value:
        codebook = b.constant(torch.tensor([-2.0, 0.0, 3.0]))
        result: Value = b.linear(x, b.lookup(codebook, b.constant(torch.tensor([[0, 1], [2, 2]]).byte())), None)
        return result

    result = ClipWeights(threshold=1.0)(build(body, (1, 2)))
    (tensor,) = weights_of(result.graph).values()
    assert tensor.tolist() == [[-1.0, 0.0], [1.0, 1.0]] and result.changes["element clipped"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0, "sigma": 2.0}, "takes threshold or sigma"),
        ({"threshold": 0.0}, "threshold must be positive"),
        ({"sigma": -1.0}, "sigma must be positive"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PassError, match=re.escape(message)):
        ClipWeights(**options)(mlp_graph())


def test_a_limit_that_nothing_reaches_is_an_error() -> None:
    with pytest.raises(PassError, match="could change nothing"):
        PassManager([ClipWeights(threshold=10.0)]).run(mlp_graph())
