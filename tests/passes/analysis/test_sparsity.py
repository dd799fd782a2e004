"""The table of zeros."""

from __future__ import annotations

from tests.passes.pruning.models import everything, mlp_graph
from whet.passes import UnstructuredPruning
from whet.passes.analysis.sparsity import sparsity


def test_zeros_are_counted_by_layer_and_in_all() -> None:
    table = sparsity(UnstructuredPruning(ratios={"0": 0.75})(mlp_graph()).graph)
    assert [(row.key, row.shape, row.zeros) for row in table.weights] == [
        ("0.weight", (32, 8), 192),
        ("2.weight", (3, 32), 0),
    ]
    assert (table.zeros, table.elements) == (192, 352)
    first, second, total = str(table).splitlines()
    assert first.split() == ["0.weight", "32x8", "192", "of", "256", "zero", "75.00%"]
    assert second.endswith(" 0.00%") and total.startswith("all") and total.endswith("54.55%")


def test_tied_weights_count_once() -> None:
    graph, _ = everything()
    keys = [row.key for row in sparsity(graph).weights]
    assert keys.count("embedding.weight") == 1 and "lstm.weight_hh_l0" in keys
