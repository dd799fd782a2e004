"""Strands, and the closure of removals on whole arrays."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.passes.equality import build, weight
from whet.errors import PassError
from whet.ir import Builder, Graph, Value
from whet.ir.coupling import Coupling, dimensions_of
from whet.ir.views import tie_graph


def halves(b: Builder, x: Value) -> Value:
    """A linear layer of 8, cut in two, of which one is squashed, and put together the other way around."""
    y = b.linear(x, b.constant(weight(8, 4), "first"), None)
    left = b.slice(y, starts=(0, 0), stops=(2, 4), steps=(1, 1))
    right = b.slice(y, starts=(0, 4), stops=(2, 8), steps=(1, 1))
    result: Value = b.linear(b.concat(b.tanh(right), left, axis=1), b.constant(weight(3, 8), "second"), None)
    return result


def test_strands_are_dimensions_that_are_tied_one_to_one() -> None:
    coupling = Coupling(tie_graph(build(halves, (2, 4))))
    members = {frozenset(strand.members) for strand in coupling.strands}
    assert {("first", 0), ("linear", 1)} in members
    assert {("slice_1", 1), ("tanh", 1)} in members
    assert {("second", 1), ("concat", 1)} in members
    assert coupling.strand(("first", 0)).pinned is None
    pinned = coupling.strand(("first", 1)).pinned
    assert pinned is not None and pinned[0] == ("x0", 1)


def test_closing_follows_index_maps_both_ways() -> None:
    coupling = Coupling(tie_graph(build(halves, (2, 4))))
    for node, index in ((("first", 0), 5), (("second", 1), 1), (("tanh", 1), 1)):
        strand = coupling.strand(node)
        removed = dimensions_of(coupling.close({strand: np.arange(strand.size) == index}))
        assert removed == {
            ("first", 0): {5}, ("linear", 1): {5},
            ("slice_1", 1): {1}, ("tanh", 1): {1},
            ("concat", 1): {1}, ("second", 1): {1},
        }  # fmt: skip


def test_what_is_whole_or_pinned_is_named() -> None:
    coupling = Coupling(tie_graph(build(halves, (2, 4))))
    strand = coupling.strand(("first", 0))
    with pytest.raises(PassError, match="nothing would be left of dimension 1 of %slice, of size 4"):
        coupling.close({strand: np.arange(8) < 4})
    with pytest.raises(PassError, match="dimension 1 of %x0 cannot shrink: %x0 is an input or state"):
        coupling.close({coupling.strand(("first", 1)): np.arange(4) < 1})


def wide(layers: int, channels: int) -> Graph:
    def body(b: Builder, x: Value) -> Value:
        x = b.linear(x, b.constant(weight(channels, 4)), None)
        for _ in range(layers):
            x = b.add(x, b.relu(b.mul(x, b.constant(weight(channels)))))
        result: Value = b.sum(x, dims=(1,))
        return result

    return build(body, (2, 4))


def test_closing_does_not_count_indices_one_by_one() -> None:
    """2048 channels through 60 layers: many seconds index by index, milliseconds by arrays."""
    coupling = Coupling(tie_graph(wide(60, 2048)))
    strand = max(coupling.strands, key=lambda item: len(item.members))
    assert len(strand.members) > 180
    start = time.perf_counter()
    removed = coupling.close({strand: np.arange(strand.size) % 2 == 0})
    assert time.perf_counter() - start < 2
    assert [int(mask.sum()) for mask in removed.values()] == [1024]
