"""Units: what goes together, in every kind of network, and that removing zeros changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.pruning.structures import NETWORKS, assert_removal_is_exact, groups_of, network
from whet.errors import InternalError
from whet.ir import Graph, print_graph
from whet.passes.pruning.resize import resize

# network -> (number of units, sizes of the dimensions that they are in) of every group, in order
UNITS: dict[str, list[tuple[int, set[int]]]] = {
    "residual": [(8, {8}), (12, {12})],
    "flattened": [(6, {6, 24}), (10, {10})],
    "split": [(13, {9, 3, 4, 13})],
    "shuffled": [(6, {6, 12}), (5, {5})],
    "depthwise": [(6, {6, 12}), (4, {4})],
    "grouped": [(4, {8, 16}), (4, {4})],
    "wide_groups": [(6, {12, 6}), (6, {12}), (4, {4})],
    "gated": [(8, {8}), (4, {4})],
    "widened": [(8, {8, 4})],
    "transposed": [(3, {6}), (4, {4, 8})],
    "broadcast": [(8, {8}), (6, {6})],
    "recurrent": [(6, {6, 24})],
    "attention": [(8, {8}), (4, {4, 16}), (20, {20})],
    "joined_attention": [(8, {8}), (4, {4, 16, 48}), (20, {20})],
    "grouped_attention": [(8, {8}), (2, {4, 16, 2, 8}), (20, {20})],
    "shared_attention": [(8, {8}), (4, {4, 16}), (20, {20})],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_units_of_a_network(name: str) -> None:
    _, groups = groups_of(network(name))
    found = [(group.size, {strand.size for strand in group.strands}) for group in groups]
    assert found == UNITS[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_unit_overlaps_another_and_each_is_closed(name: str) -> None:
    coupling, groups = groups_of(network(name))
    for group in groups:
        for unit in range(group.size):
            chosen = np.arange(group.size) == unit
            masks = group.masks(chosen)
            closed = coupling.close(masks)
            assert set(closed) == set(masks)
            assert all(bool((closed[strand] == masks[strand]).all()) for strand in masks)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(NETWORKS)), data=st.data())
def test_removing_zeros_changes_nothing(name: str, data: st.DataObject) -> None:
    graph = network(name)
    coupling, groups = groups_of(graph)
    masks = {}
    for group in groups:
        left = np.array([strand.size - 1 for strand in group.strands])
        units = np.zeros(group.size, dtype=np.bool_)
        for unit in data.draw(st.lists(st.integers(0, group.size - 1), unique=True, max_size=group.size - 1)):
            if (left >= group.counts[unit]).all():
                left, units[unit] = left - group.counts[unit], True
        masks |= group.masks(units)
    assert_removal_is_exact(graph, coupling, masks)


@pytest.mark.parametrize("name", NETWORKS)
def test_removing_nothing_is_the_identity(name: str) -> None:
    graph = network(name)
    assert print_graph(resize(graph, {})) == print_graph(graph)
    assert print_graph(resize(graph, {(graph.constants[0].name, 0): ()})) == print_graph(graph)


def test_a_removal_that_is_not_closed_is_a_broken_invariant() -> None:
    graph: Graph = network("residual")
    text = print_graph(graph)
    with pytest.raises(InternalError, match=r"conv.* cannot shrink"):
        resize(graph, {(graph.constants[0].name, 1): (0,)})
    assert print_graph(graph) == text
