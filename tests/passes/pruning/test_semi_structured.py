"""NMPruning: n of every m inputs at most, for every layout of weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.equality import build, count, weight
from tests.passes.pruning.models import everything, mlp_graph, named
from whet.errors import PassError
from whet.ir import Builder, Graph, Value
from whet.passes import Context, NMPruning, Tracer, UnstructuredPruning
from whet.passes.pruning.masks import find_weights

CONV = {"stride": (1, 1), "dilation": (1, 1)}
PATTERNS = st.integers(1, 4).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m)))


def layer_graph(kind: str, inputs: int, outputs: int, groups: int, seed: int) -> Graph:
    def body(b: Builder, x: Value) -> Any:
        if kind == "linear":
            return b.linear(x, b.constant(weight(outputs, inputs * groups, seed=seed)), None)
        if kind == "matmul":
            return b.matmul(x, b.constant(weight(inputs * groups, outputs, seed=seed)))
        if kind == "conv":
            kernel = b.constant(weight(outputs * groups, inputs, 2, 3, seed=seed))
            return b.conv(x, kernel, None, **CONV, padding=((0, 0), (0, 0)), groups=groups)
        kernel = b.constant(weight(inputs * groups, outputs, 2, 3, seed=seed))
        more = {"padding": (0, 0), "output_padding": (0, 0), "groups": groups}
        return b.conv_transpose(x, kernel, None, **CONV, **more)

    shape = (2, inputs * groups) if kind in ("linear", "matmul") else (1, inputs * groups, 4, 4)
    return build(body, shape)


def summed_last(kind: str, tensor: torch.Tensor, groups: int) -> torch.Tensor:
    """The weight with the inputs that one output sums over in its last dimension."""
    if kind == "linear":
        return tensor
    if kind == "matmul":
        return tensor.T
    if kind == "conv":
        return tensor.movedim(1, -1)
    return tensor.reshape(groups, -1, *tensor.shape[1:]).movedim(1, -1)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(("linear", "matmul", "conv", "conv_transpose")),
    pattern=PATTERNS,
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)),
    seed=st.integers(0, 99),
)
def test_no_group_has_more_and_the_largest_stay(
    kind: str, pattern: tuple[int, int], sizes: tuple[int, int, int], seed: int
) -> None:
    n, m = pattern
    graph = layer_graph(kind, sizes[0] * m, sizes[1], sizes[2], seed)
    (before,), (after,) = find_weights(graph), find_weights(NMPruning(n, m)(graph).graph)
    old, new = (summed_last(kind, item.tensor, sizes[2]).unfold(-1, m, m) for item in (before, after))
    assert bool(((new != 0).sum(-1) == n).all())
    largest = old.abs().topk(n).values.sum(-1)
    assert torch.allclose(new.abs().sum(-1), largest)


def test_inputs_that_do_not_divide_are_left_with_the_reason() -> None:
    tracer = Tracer()
    graph = layer_graph("linear", 6, 3, 1, 0)
    assert not NMPruning(2, 4).run(graph, Context(tracer=tracer)).modified
    assert [item.reason for item in tracer.declined] == ["6 inputs do not divide into groups of 4"]


def test_a_whole_model() -> None:
    graph, _ = everything()
    tracer = Tracer()
    result = NMPruning().run(graph, Context(tracer=tracer)).graph
    assert [item.reason for item in tracer.declined] == ["take sums over no inputs"]
    assert len(named(result, "masked")) == 8


def test_what_was_pruned_before_is_never_among_the_kept() -> None:
    first = UnstructuredPruning(ratio=0.6, criterion="random")(mlp_graph()).graph
    second = NMPruning(2, 4)(first).graph
    for before, after in zip(find_weights(first), find_weights(second), strict=True):
        assert bool((after.tensor[before.tensor == 0] == 0).all())
        assert int((after.tensor.reshape(-1, 4) != 0).sum(1).max()) <= 2
    assert count(second)["masked"] == 2
    assert not NMPruning(2, 4)(second).modified


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (-1, 2)])
def test_patterns_that_are_none_are_refused(n: int, m: int) -> None:
    with pytest.raises(PassError, match=re.escape(f"0 < n <= m; got n={n}, m={m}")):
        NMPruning(n, m)(mlp_graph())


def test_layer_patterns_that_fit_nothing_are_refused() -> None:
    with pytest.raises(PassError, match="no layer has a module path like fc"):
        NMPruning(exclude=("fc",))(mlp_graph())
