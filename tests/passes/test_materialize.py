from __future__ import annotations

import torch

from tests.passes.equality import assert_same_results, build
from whet.ir import Builder, Value
from whet.passes import MaterializeWeights


def shared_and_pruned(b: Builder, x: Value) -> Value:
    """linear with a weight that is masked out of a codebook."""
    codebook = b.constant(torch.tensor([-0.5, 0.0, 2.0]), "fc.weight.codebook")
    indices = b.constant(torch.tensor([[0, 1, 2], [2, 2, 0]], dtype=torch.uint8), "fc.weight.indices")
    mask = b.constant(torch.tensor([[True, False, True], [True, True, False]]), "fc.weight.mask")
    return b.linear(x, b.masked(b.lookup(codebook, indices), mask))


def test_a_weight_in_a_stored_form_becomes_one_constant() -> None:
    graph = build(shared_and_pruned, (4, 3))
    result = MaterializeWeights()(graph)
    assert [operation.name for operation in result.graph.operations] == ["constant", "linear"]
    assert result.changes == {"weight materialized": 1}
    weight = result.graph.operations[-1].operand(1).constant
    assert weight is not None and torch.equal(weight, torch.tensor([[-0.5, 0.0, 2.0], [2.0, 2.0, 0.0]]))
    assert_same_results(graph, result.graph)


def test_gradients_reach_kept_entries_only() -> None:
    codebook = torch.tensor([-0.5, 1.0], requires_grad=True)
    graph = build(shared_and_pruned, (1, 3))
    lookup, masked = (next(item for item in graph.operations if item.name == name) for name in ("lookup", "masked"))
    indices = torch.tensor([0, 1, 1], dtype=torch.uint8)
    values = lookup.definition.evaluate(codebook, indices)
    masked.definition.evaluate(values, torch.tensor([True, True, False])).sum().backward()
    assert codebook.grad is not None and codebook.grad.tolist() == [1.0, 1.0]
