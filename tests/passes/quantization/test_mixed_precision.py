"""Sensitivity of layers, the choice of bits under a budget, and the graphs that come of it."""

from __future__ import annotations

import itertools
import math
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import whet
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import DType, Graph, Interpreter, print_graph, verify
from whet.ir.target import get_target
from whet.passes import Context, MixedPrecision, PassManager, QuantizeStatic
from whet.passes.pruning.budget import stored_bytes
from whet.passes.quantization.allocation import Option, least_bytes, least_error
from whet.passes.quantization.sensitivity import Sensitivity, sensitivity
from whet.passes.quantization.weights_only import QuantizeWeights

BATCHES = [(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),) for seed in range(2)]
OPTIONS = st.builds(Option, st.integers(0, 40), st.floats(0, 10))


class Net(nn.Module):
    """Its middle layer matters most: what it makes is large, and its weights spread."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, stride=2)
        self.last = nn.Linear(16 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.middle(torch.relu(self.first(x))))
        result: torch.Tensor = self.last(x.flatten(1))
        return result


@cache
def imported() -> Graph:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.middle.weight[:, :, 0, 0] *= 20
        model.last.weight *= 3
    return import_model(model, BATCHES[0])


def context(**others: Any) -> Context:
    return Context(calibration=BATCHES, target=get_target("avx512-vnni"), **others)


@cache
def measured(bits: tuple[int, ...] = (32, 8, 4, 2)) -> Sensitivity:
    return sensitivity(imported(), context(), bits=bits)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=5), st.floats(0, 200), st.floats(0, 30))
def test_allocations_are_the_best_of_all(layers: list[list[Option]], size: float, error: float) -> None:
    every = [
        (sum(item.bytes for item in taken), math.fsum(item.error for item in taken))
        for taken in itertools.product(*layers)
    ]
    chosen = least_error(layers, size)
    within = [pair for pair in every if pair[0] <= size]
    assert chosen.met == bool(within)
    assert chosen.bytes <= size if chosen.met else chosen.bytes == min(pair[0] for pair in every)
    if within:
        assert chosen.error == pytest.approx(min(pair[1] for pair in within))
    chosen = least_bytes(layers, error)
    fine = [pair for pair in every if pair[1] <= error]
    assert chosen.met == bool(fine) or chosen.error == pytest.approx(error)
    if fine and chosen.met:
        assert chosen.bytes == min(pair[0] for pair in fine) or chosen.error == pytest.approx(error)
    taken = [options[index] for options, index in zip(layers, chosen.chosen, strict=True)]
    assert chosen.bytes == sum(item.bytes for item in taken)


def test_uneven_sizes_are_rounded_so_that_the_budget_holds() -> None:
    rng = np.random.default_rng(0)
    layers = [
        [Option(int(size), 0.0), Option(int(size) // 2, float(loss))]
        for size, loss in zip(rng.integers(10**6, 10**7, 60), rng.random(60), strict=True)
    ]
    for part in (0.55, 0.75, 0.95):
        size = part * sum(options[0].bytes for options in layers)
        found = least_error(layers, size)
        assert found.met and 0.995 * size <= found.bytes <= size


def test_fewer_bits_lose_more_and_the_table_says_so() -> None:
    table = measured()
    assert table.layers == ("first", "middle", "last") and table.bits == (32, 8, 4, 2)
    for layer in table.layers:
        losses, sizes = zip(*((choice.loss, choice.bytes) for choice in table.of(layer)), strict=True)
        assert losses[0] == 0 and losses[0] < losses[1] < losses[2] < losses[3]
        assert sizes[0] == table.sizes[layer] > sizes[1] > sizes[2] == sizes[3]
    lines = str(table).splitlines()
    worst = max(table.layers, key=lambda layer: table.of(layer)[-1].loss)
    assert "y_float" in lines[0] and lines[2].startswith(worst) and len(lines) == 5


def test_losses_are_those_of_one_layer_alone() -> None:
    graph = imported()
    alone = QuantizeWeights(bits=4, exclude=("first", "last"))(graph).graph
    expected = [Interpreter(graph)(*batch)[0] for batch in BATCHES]
    found = [Interpreter(alone)(*batch)[0] for batch in BATCHES]
    error = sum(float((y - x).square().sum()) for x, y in zip(expected, found, strict=True))
    loss = error / sum(float(x.square().sum()) for x in expected)
    (choice,) = [choice for choice in measured().of("middle") if choice.bits == 4]
    assert choice.loss == pytest.approx(loss, rel=1e-5)


def evaluate(model: Any) -> float:
    return -float(sum(model(*batch).square().sum() for batch in BATCHES))


@pytest.mark.parametrize("metric", ["kl", "evaluate"])
def test_other_metrics(metric: str) -> None:
    table = sensitivity(imported(), context(evaluate=evaluate), bits=(8, 2), metric=metric)
    assert all(abs(table.of(layer)[1].loss) > abs(table.of(layer)[0].loss) for layer in table.layers)


def bits_of(graph: Graph) -> list[int]:
    """Of each layer's weight."""
    found = []
    for operation in graph.operations:
        if operation.name in ("conv", "linear"):
            codes = operation.operand(1).producer
            assert codes is not None
            found.append(32 if codes.name == "constant" else codes.operand(0).type.dtype.bits)
    return found


def test_the_most_sensitive_layers_get_the_most_bits() -> None:
    graph = imported()
    text = print_graph(graph)
    outcome = PassManager([MixedPrecision(bits=(8, 4), size=0.2)]).run(graph, context())
    assert print_graph(graph) == text
    verify(outcome.graph)
    (entry,) = outcome.report.passes
    assert sum(entry.changes.values()) == 3 and set(entry.changes) == {"layer in 8 bits", "layer in 4 bits"}
    left = stored_bytes(outcome.graph) - stored_bytes(graph) + sum(measured().sizes.values())
    assert left <= 0.2 * sum(measured().sizes.values())
    table = measured()
    gains = {layer: table.of(layer)[2].loss - table.of(layer)[1].loss for layer in table.layers}
    chosen = dict(zip(table.layers, bits_of(outcome.graph), strict=True))
    assert {8, 4} == set(chosen.values())
    assert chosen[max(gains, key=lambda layer: gains[layer] / table.sizes[layer])] == 8


def test_a_bound_on_the_error_takes_as_few_bytes_as_it_allows() -> None:
    sizes = [stored_bytes(imported())]
    for bound in (1e-3, 1.0):
        outcome = PassManager([MixedPrecision(bits=(32, 8, 4), error=bound)]).run(imported(), context())
        sizes.append(stored_bytes(outcome.graph))
    assert sizes[0] > sizes[1] > sizes[2]


def test_static_quantization_with_bits_by_layer() -> None:
    quantizer = QuantizeStatic(operations=("conv", "linear"))
    graph = PassManager([MixedPrecision(bits=(8, 4), size=0.2, quantizer=quantizer)]).run(imported(), context()).graph
    verify(graph)
    weights = [x.operand(1).type.dtype for x in graph.operations if x.name in ("conv_integer", "linear_integer")]
    assert len(weights) == 3 and set(weights) == {DType.I8, DType.I4}


def test_a_budget_that_cannot_be_met_gives_the_best_and_says_how_far_it_came() -> None:
    outcome = PassManager([MixedPrecision(bits=(8, 4), size=0.01)]).run(imported(), context())
    assert set(bits_of(outcome.graph)) == {4}
    assert any("budget missed: 0.1" in change for change in outcome.report.passes[0].changes)
    outcome = PassManager([MixedPrecision(bits=(8, 4), error=0.0)]).run(imported(), context())
    assert set(bits_of(outcome.graph)) == {8}
    assert any("budget missed: the losses sum to" in change for change in outcome.report.passes[0].changes)


def test_compiled() -> None:
    compiled = whet.optimize(
        imported(),
        "x86",
        passes=[MixedPrecision(bits=(8, 4), size=0.2)],
        calibration=BATCHES,
        progress=False,
    )
    graph = PassManager([MixedPrecision(bits=(8, 4), size=0.2)]).run(imported(), context()).graph
    out, ref = torch.as_tensor(np.asarray(compiled(*BATCHES[0]))), Interpreter(graph)(*BATCHES[0])[0]
    assert float((out - ref).norm() / ref.norm()) < 1e-4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give one budget"),
        ({"size": 0.5, "error": 1.0}, "give one budget"),
        ({"size": 0.0}, "fraction of bytes"),
        ({"error": math.nan}, "bound on a loss"),
    ],
)
def test_impossible_options(options: dict[str, float], said: str) -> None:
    with pytest.raises(PassError, match=said):
        MixedPrecision(**options)  # type: ignore[arg-type]


def test_bad_input() -> None:
    graph = imported()
    with pytest.raises(PassError, match="metric is one of error, kl, evaluate"):
        sensitivity(graph, context(), metric="sqnr")
    with pytest.raises(PassError, match="must name something to try"):
        sensitivity(graph, context(), bits=())
    with pytest.raises(PassError, match="weight_bits is 9"):
        sensitivity(graph, context(), bits=(9,))
    with pytest.raises(PassError, match="calibration="):
        sensitivity(graph, Context())
    with pytest.raises(PassError, match="evaluate="):
        sensitivity(graph, context(), metric="evaluate")
    with pytest.raises(PassError, match="there is no layer to measure"):
        sensitivity(import_model(nn.ReLU().eval(), (torch.randn(2, 3),)), context())
    with pytest.raises(PassError, match=r"no layer has a module path like none\*"):
        sensitivity(graph, context(), QuantizeWeights(exclude=("none*",)))
    with pytest.raises(PassError, match=r"no layer 'x' was measured; there are first, middle, last"):
        measured().of("x")


class Axes:
    def __init__(self) -> None:
        self.labels: list[str] = []

    def plot(self, values: list[float], marker: str, label: str) -> None:
        assert len(values) == 3
        self.labels.append(label)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: None


def test_a_plot_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The drawing itself is matplotlib's: only what is drawn is looked at here."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PassError, match="pip install matplotlib"):
        measured().plot(tmp_path / "table.png")
    axes, module = Axes(), ModuleType("matplotlib.figure")

    class Figure:
        def __init__(self, **options: Any) -> None:
            self.subplots = lambda: axes

        def savefig(self, path: Path) -> None:
            path.write_bytes(b"drawn")

    module.Figure = Figure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "matplotlib", ModuleType("matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", module)
    measured().plot(tmp_path / "table.png")
    assert axes.labels == ["8 bits", "4 bits", "2 bits"] and (tmp_path / "table.png").exists()
