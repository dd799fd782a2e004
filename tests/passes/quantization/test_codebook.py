"""Codebooks: k-means of numbers, shared weights, powers of two, and what a bundle makes of them."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import whet
from tests.e2e.networks import relative_error
from tests.passes.equality import assert_same_results, build, count
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Builder, Graph, Interpreter, Value, verify
from whet.passes import Context, MaterializeWeights, QuantizeCodebook, QuantizeLogarithmic
from whet.passes.quantization.kmeans import INITS, kmeans, nearest
from whet.passes.quantization.logarithmic import powers_of_two


def error(values: Tensor, centres: Tensor) -> float:
    return float((centres[nearest(values, centres).long()] - values).square().sum())


def best_error(values: list[float], clusters: int) -> float:
    """By trying every way to cut the sorted values into ranges."""
    ordered = torch.tensor(sorted(values), dtype=torch.float64)
    ways = combinations(range(1, len(values)), min(clusters, len(values)) - 1)
    cuts = ([0, *way, len(values)] for way in ways)
    return min(
        sum(float((ordered[a:b] - ordered[a:b].mean()).square().sum()) for a, b in pairwise(cut)) for cut in cuts
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=9), st.integers(1, 4), st.sampled_from(sorted(INITS)))
def test_centres_are_a_fixed_point_of_lloyds_algorithm(values: list[float], clusters: int, init: str) -> None:
    given_values = torch.tensor(values, dtype=torch.float64)
    centres = kmeans(given_values, clusters, init)
    assert 1 <= len(centres) <= clusters and bool((centres.diff() > 0).all())
    chosen = nearest(given_values, centres).long()
    for index, centre in enumerate(centres):
        assert abs(float(given_values[chosen == index].mean()) - float(centre)) < 1e-9
    assert error(given_values, centres) >= best_error(values, clusters) - 1e-9
    if len(set(values)) <= clusters:
        assert error(given_values, centres) == 0


@pytest.mark.parametrize("init", sorted(INITS))
def test_clusters_of_normal_numbers_are_near_the_best(init: str) -> None:
    """The least mean squared error of 8 levels for a normal variable is 0.03455 (Max, 1960)."""
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    centres = kmeans(values, 8, init)
    assert len(centres) == 8 and error(values, centres) / len(values) < 0.0352


def test_indices_are_those_of_the_nearest_entry() -> None:
    centres = torch.tensor([-1.0, 0.0, 0.5])
    values = torch.tensor([[-9.0, -0.5], [-0.49, 0.26], [0.25, 9.0]])
    assert nearest(values, centres).tolist() == [[0, 0], [1, 2], [1, 2]]
    assert nearest(values, centres).dtype is torch.uint8


def test_no_values_and_values_that_are_not_finite() -> None:
    for values in (torch.empty(0), torch.tensor([1.0, torch.inf]), torch.tensor([torch.nan, 0.0])):
        with pytest.raises(PassError, match="finite values"):
            kmeans(values, 4)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16 * 36, 40)
        self.out = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.conv(x))).flatten(1)
        return self.out(torch.relu(self.fc(hidden)))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def weights_of(graph: Graph) -> dict[str, Tensor]:
    """The weights of linear layers and convolutions by module."""
    plain = MaterializeWeights()(graph).graph
    layers = [op for op in plain.operations if op.name in ("conv", "linear")]
    found = {layer.location.module: layer.operand(1).constant for layer in layers}
    return {key: item for key, item in found.items() if item is not None}


@pytest.mark.parametrize(
    "item", [QuantizeCodebook(bits={"conv": 5, "*": 3}, init="kmeans++"), QuantizeLogarithmic(bits=5)], ids=str
)
def test_compiled_and_interpreted(model: nn.Module, item: Any) -> None:
    result = item(import_model(model, (X,)))
    verify(result.graph)
    assert result.changes == {"conv shared": 1, "linear shared": 2}
    assert count(result.graph)["lookup"] == 3 and count(result.graph)["batch_norm"] == 0
    (ref,) = Interpreter(result.graph)(X)
    assert relative_error(ref, model(X).detach()) < 0.4
    compiled = whet.optimize(model, "x86", example_inputs=(X,), passes=[item])
    assert relative_error(compiled(X), ref) < 1e-5


def test_bits_by_pattern(model: nn.Module) -> None:
    graph = import_model(model, (X,))
    found = weights_of(QuantizeCodebook(bits={"fc": 2, "*": 4}, exclude=("out",))(graph).graph)
    assert len(found["fc"].unique()) == 4 and 12 <= len(found["conv"].unique()) <= 16
    assert len(found["out"].unique()) == 400
    default = weights_of(QuantizeCodebook()(graph).graph)
    assert 128 < len(default["conv"].unique()) <= 256 and len(default["fc"].unique()) <= 32
    with pytest.raises(PassError, match="no layer has a module path like nowhere; the paths are conv, fc, out"):
        QuantizeCodebook(bits={"nowhere": 2})(graph)


def pruned(b: Builder, x: Value) -> Any:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 20, generator=generator)
    mask = torch.rand(30, 20, generator=generator) < 0.4
    mask[:, 3] = False
    return b.linear(x, b.masked(b.constant(weight, "fc.weight"), b.constant(mask, "fc.weight.mask")))


@pytest.mark.parametrize("item", [QuantizeCodebook(bits=3), QuantizeLogarithmic()], ids=str)
def test_what_was_pruned_stays_zero_and_is_not_clustered(item: Any) -> None:
    before = build(pruned, (2, 20))
    graph = item(before).graph
    masked = next(op for op in graph.operations if op.name == "masked")
    lookup = masked.operand(0).producer
    assert lookup is not None and lookup.name == "lookup"
    mask, codebook = masked.operand(1).constant, lookup.operand(0).constant
    assert mask is not None and codebook is not None
    weight, found = (next(iter(weights_of(item_graph).values())) for item_graph in (before, graph))
    assert bool((found[~mask] == 0).all())
    expected = codebook[nearest(weight[mask], codebook).long()]
    assert torch.equal(found[mask], expected)
    if isinstance(item, QuantizeCodebook):
        assert len(codebook) == 8 and not bool((codebook == 0).any())
        assert torch.allclose(codebook.double(), kmeans(weight[mask], 8).double())


def test_a_weight_that_was_pruned_as_a_whole() -> None:
    def body(b: Builder, x: Value) -> Any:
        return b.linear(x, b.masked(b.constant(torch.ones(3, 4)), b.constant(torch.zeros(3, 4, dtype=torch.bool))))

    for item in (QuantizeCodebook(), QuantizeLogarithmic()):
        before = build(body, (2, 4))
        assert_same_results(before, item(before).graph)


def test_codebooks_can_be_trained() -> None:
    graph = QuantizeCodebook(bits=2)(build(pruned, (2, 20))).graph
    lookup, masked = (next(op for op in graph.operations if op.name == name) for name in ("lookup", "masked"))
    indices, mask, codebook = lookup.operand(1).constant, masked.operand(1).constant, lookup.operand(0).constant
    assert indices is not None and mask is not None and codebook is not None
    trained = codebook.clone().requires_grad_()
    x = torch.ones(2, 20) / 2
    Interpreter(graph, overrides={lookup.operand(0).name: trained})(x)[0].sum().backward()
    counts = [float((mask & (indices == entry)).sum()) for entry in range(4)]
    assert trained.grad is not None and trained.grad.tolist() == counts


def test_sharing_again_changes_nothing(model: nn.Module) -> None:
    first = QuantizeCodebook(bits=3)(import_model(model, (X,)))
    assert not QuantizeCodebook(bits=3)(first.graph).modified


@given(st.floats(2.0**-90, 2.0**90, width=32), st.integers(1, 127))
def test_powers_of_two(largest: float, exponents: int) -> None:
    centres = powers_of_two(largest, exponents)
    assert len(centres) <= 2 * exponents + 1 and bool((centres == -centres.flip(0)).all())
    mantissas = torch.frexp(centres[centres > 0]).mantissa
    assert bool((mantissas == 0.5).all())
    assert 0.75 <= largest / float(centres[-1]) <= 1.5


def test_the_powers_of_a_layer() -> None:
    weight = torch.tensor([[1.0, -0.8, 0.7, -0.3], [0.05, 0.02, 0.01, -0.001]])
    before = build(lambda b, x: b.linear(x, b.constant(weight, "fc.weight")), (1, 4))
    (found,) = weights_of(QuantizeLogarithmic(bits=4)(before).graph).values()
    assert found.tolist() == [[1.0, -1.0, 0.5, -0.25], [0.0625, 0.015625, 0.015625, 0.0]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: QuantizeCodebook(bits=0), "bits is 0"),
        (lambda: QuantizeCodebook(bits=9), "bits is 9"),
        (lambda: QuantizeCodebook(bits={"*": 12}), "bits is 12"),
        (lambda: QuantizeCodebook(init="best"), "init is 'best'"),
        (lambda: QuantizeLogarithmic(bits=1), "bits is 1"),
    ],
)
def test_impossible_options(make: Any, words: str) -> None:
    with pytest.raises(PassError, match=words):
        make()


def test_weights_that_are_not_finite() -> None:
    graph = build(lambda b, x: b.linear(x, b.constant(torch.full((2, 4), torch.nan))), (1, 4))
    for item in (QuantizeCodebook(), QuantizeLogarithmic()):
        with pytest.raises(PassError, match="finite"):
            item.run(graph, Context())


def test_a_bundle_stores_codebooks_and_indices(tmp_path: Path, model: nn.Module) -> None:
    sizes = {}
    for bits in (2, 4):
        passes = [QuantizeCodebook(bits=bits)]
        compiled = whet.optimize(model, "x86", example_inputs=(X,), passes=passes)
        compiled.save(tmp_path / "m.whet")
        report = whet.runtime.storage_report(tmp_path / "m.whet")
        elements = 3 * 16 * 9 + 16 * 36 * 40 + 400
        assert report.weights_disk < 1.15 * elements * bits / 8 + 1200
        assert torch.equal(whet.load(tmp_path / "m.whet")(X), compiled(X))
        sizes[bits] = report.weights_disk
    assert sizes[2] < 0.65 * sizes[4]
