"""BlockSparsity: whole vectors of the target go."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.equality import build, weight
from tests.passes.pruning.models import everything, mlp_graph
from whet.errors import PassError
from whet.ir.target import get_target
from whet.passes import BlockSparsity, Context
from whet.passes.pruning.block_sparsity import block_means
from whet.passes.pruning.masks import find_weights


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 2)),
    block=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_means_of_blocks_count_the_elements_that_there_are(sizes: tuple[int, int, int], block: tuple[int, int]) -> None:
    matrix = weight(*sizes)
    means = block_means(matrix, block)
    rows, columns = torch.split(matrix, block[0], 0), torch.split(matrix[:1], block[1], 1)
    assert means.shape == (len(rows), len(columns), sizes[2])
    for index, row in enumerate(rows):
        for other, part in enumerate(torch.split(row, block[1], 1)):
            assert torch.allclose(means[index, other], part.mean((0, 1)), atol=1e-6)


@pytest.mark.parametrize(("target", "lanes"), [("avx512", 16), ("arm", 4)])
def test_blocks_have_the_targets_vectors(target: str, lanes: int) -> None:
    result = BlockSparsity(ratio=0.5).run(mlp_graph(), Context(target=get_target(target))).graph
    tensor = find_weights(result)[0].tensor
    blocks = tensor.reshape(32 // lanes, lanes, 8)
    empty, full = (blocks == 0).all(1), (blocks != 0).all(1)
    assert bool((empty | full).all()) and int(empty.sum()) == 8 * (32 // lanes) // 2
    assert blocks.abs().mean(1)[empty].max() <= blocks.abs().mean(1)[full].min()


@pytest.mark.parametrize("scope", ["local", "global"])
def test_every_kind_of_weight(scope: str) -> None:
    graph, _ = everything()
    result = BlockSparsity(ratio=0.5, block=(4, 2), scope=scope)(graph)
    pruned = [int((item.tensor == 0).sum()) for item in find_weights(result.graph)]
    assert result.changes["element pruned"] == sum(pruned) > 0
    if scope == "local":
        assert all(2 * count == item.tensor.numel() for count, item in zip(pruned, find_weights(graph), strict=True))


def test_pruning_again_adds_blocks() -> None:
    first = BlockSparsity(ratio=0.25, block=(4, 1))(mlp_graph()).graph
    second = BlockSparsity(ratio=0.5, block=(4, 1))(first)
    for before, after in zip(find_weights(first), find_weights(second.graph), strict=True):
        assert bool((after.tensor[before.tensor == 0] == 0).all())
    assert not BlockSparsity(ratio=0.5, block=(4, 1))(second.graph).modified


def test_half_precision_has_twice_the_lanes() -> None:
    graph = build(
        lambda b, x: b.linear(x, b.constant(weight(32, 4).half()), None),
        (2, 4),
        dtype=mlp_graph().inputs[0].type.dtype.of(torch.float16),
    )
    target = dataclasses.replace(get_target("arm"), name="narrow")
    (after,) = find_weights(BlockSparsity().run(graph, Context(target=target)).graph)
    groups = (after.tensor.reshape(4, 8, 4) == 0).float().mean(1)
    assert set(groups.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0, "block": (1, 1)}, "in [0, 1); got 1.0"),
        ({}, "give a target, or block="),
        ({"block": (0, 1)}, "both positive; got (0, 1)"),
        ({"block": (1, 1), "scope": "all"}, "scope is one of local, global"),
        ({"block": (1, 1), "criterion": "l3"}, "known are"),
        ({"block": (1, 1), "exclude": ("fc",)}, "no layer has a module path like fc"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PassError, match=re.escape(message)):
        BlockSparsity(**options)(mlp_graph())
