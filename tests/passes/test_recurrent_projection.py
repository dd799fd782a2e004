"""Hoisting input projections out of recurrent layers, and giving each layer states of its own."""

from __future__ import annotations

import pytest
import torch

from tests.passes.equality import assert_same_results, build, count, run_checked, weight
from whet.frontend import import_model
from whet.ir import Builder, Graph, Value, verify
from whet.ir.views import coupled_indices, tie_graph
from whet.passes import Canonicalize, Context, HoistRecurrentProjections, PassManager, UntieStates


class Recurrent(torch.nn.Module):
    """The outputs and last states of a recurrent layer as a flat tuple."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output, last = self.layer(x)
        return output, *(last if isinstance(last, tuple) else (last,))


LAYERS = {
    "lstm": torch.nn.LSTM(5, 6, 2, bidirectional=True),
    "lstm-projection": torch.nn.LSTM(5, 6, proj_size=3),
    "lstm-no-bias": torch.nn.LSTM(5, 6, bias=False, batch_first=True),
    "gru": torch.nn.GRU(5, 6, 2, batch_first=True),
    "rnn": torch.nn.RNN(5, 6, nonlinearity="relu"),
}


def imported(layer: torch.nn.Module, symbolic: bool = False) -> Graph:
    torch.manual_seed(0)
    batch = ({1: torch.export.Dim("batch", max=64)},) if symbolic else None
    return import_model(Recurrent(layer).eval(), (torch.randn(4, 3, 5),), None, batch)


@pytest.mark.parametrize("name", LAYERS)
def test_the_input_product_becomes_a_linear_layer(name: str) -> None:
    graph = imported(LAYERS[name])
    result = run_checked(HoistRecurrentProjections(), graph)
    layers = [operation for operation in result.operations if operation.name == name.split("-")[0]]
    assert count(result)["linear"] == len(layers) == count(graph)[name.split("-")[0]]
    assert all(layer.operands[1 + layer.definition.states] is None for layer in layers)  # type: ignore[attr-defined]


def test_the_linear_layer_has_its_weight_for_a_module_path() -> None:
    result = run_checked(HoistRecurrentProjections(), imported(LAYERS["gru"]))
    paths = [operation.location.module for operation in result.operations if operation.name == "linear"]
    assert paths == ["layer.weight_ih_l0", "layer.weight_ih_l1"]


def test_both_biases_become_one_except_for_a_gru() -> None:
    lstm, gru = (run_checked(HoistRecurrentProjections(), imported(LAYERS[name])) for name in ("lstm", "gru"))
    assert {len(operation.operands) for operation in lstm.operations if operation.name == "lstm"} == {5}
    kept = [operation.operand(5).constant for operation in gru.operations if operation.name == "gru"]
    assert torch.equal(kept[0], LAYERS["gru"].bias_hh_l0)  # type: ignore[arg-type]


def test_biases_that_are_no_constants_are_added() -> None:
    def body(b: Builder, x: Value, bias: Value, other: Value) -> Value:
        state = b.constant(torch.zeros(3, 2))
        output: Value = b.rnn(x, state, b.constant(weight(2, 5)), b.constant(weight(2, 2)), bias, other)[0]
        return output

    result = run_checked(HoistRecurrentProjections(), build(body, (4, 3, 5), (2,), (2,)))
    assert count(result)["add"] == 1


def test_a_batch_of_any_size() -> None:
    graph = imported(LAYERS["lstm"], symbolic=True)
    result = HoistRecurrentProjections().run(graph, Context()).graph
    verify(result)
    assert_same_results(graph, result, [torch.randn(4, 7, 5)])


@pytest.mark.parametrize("symbolic", [False, True])
def test_untied_layers_lose_units_by_themselves(symbolic: bool) -> None:
    graph = PassManager([Canonicalize()]).run(imported(torch.nn.LSTM(5, 6, 3), symbolic)).graph
    graph.outputs = graph.outputs[:1]
    untied = UntieStates().run(graph, Context())
    verify(untied.graph)
    assert untied.modified and not UntieStates().run(untied.graph, Context()).modified
    assert_same_results(graph, untied.graph, [torch.randn(4, 3, 5)])
    seed = {("layer.weight_hh_l0", 1): [2]}
    together, alone = (coupled_indices(tie_graph(item), seed) for item in (_pruned(graph), _pruned(untied.graph)))
    assert ("layer.weight_hh_l1", 1) in together and ("layer.weight_hh_l1", 1) not in alone
    assert alone["layer.weight_ih_l0", 0] == {2, 8, 14, 20} and alone["layer.weight_ih_l1", 1] == {2}


def _pruned(graph: Graph) -> Graph:
    """The graph with a linear layer behind: units that the outputs need could not be removed."""
    clone = graph.clone()
    builder = Builder(clone)
    clone.outputs = [builder.linear(clone.outputs[0], builder.constant(weight(2, 6)))]
    return clone
