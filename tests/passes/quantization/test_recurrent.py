"""Recurrent layers in integers: what the passes write, what they leave, and what compiled code makes of it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import whet
from tests.passes.equality import relative_error
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Graph, Interpreter, verify
from whet.ir.target import get_target
from whet.passes import (
    Context,
    HoistRecurrentProjections,
    Pass,
    PassManager,
    QuantizeDynamic,
    QuantizeRecurrent,
    QuantizeStatic,
    coverage,
)

COMPILED_TOLERANCE = 1e-2
"""numerics: Q12, T1."""


class Tagger(torch.nn.Module):
    """Recurrent layers over [batch, length, 12], and a score for each step."""

    def __init__(self, kind: type[torch.nn.RNNBase], **options: int | bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = kind(12, 24, batch_first=True, **options)  # type: ignore[arg-type]
        self.head = torch.nn.Linear(48 if options.get("bidirectional") else 24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.layers(x)[0])
        return scores


MODELS = {
    "lstm": Tagger(torch.nn.LSTM, num_layers=2),
    "lstm-bidirectional": Tagger(torch.nn.LSTM, bidirectional=True),
    "lstm-no-bias": Tagger(torch.nn.LSTM, bias=False),
    "gru": Tagger(torch.nn.GRU, num_layers=2),
    "gru-bidirectional": Tagger(torch.nn.GRU, bidirectional=True),
    "gru-no-bias": Tagger(torch.nn.GRU, bias=False),
}
X = torch.randn(3, 9, 12, generator=torch.Generator().manual_seed(1))
BATCHES = [(X,), (torch.randn(3, 9, 12, generator=torch.Generator().manual_seed(2)),)]


def imported(name: str) -> Graph:
    return import_model(MODELS[name].eval(), (X,))


def quantized(graph: Graph, item: Pass) -> Graph:
    return PassManager([item]).run(graph, Context(calibration=BATCHES)).graph


def count(graph: Graph) -> Counter[str]:
    return Counter(operation.name for operation in graph.operations)


@pytest.mark.parametrize("name", MODELS)
def test_the_answer_stays_near(name: str) -> None:
    graph = imported(name)
    result = quantized(graph, QuantizeRecurrent())
    verify(result)
    kind = name.split("-")[0]
    assert count(result)[f"{kind}_integer"] == count(graph)[kind] and not count(result)[kind]
    assert relative_error(Interpreter(result)(X)[0], Interpreter(graph)(X)[0]) < 0.01


@pytest.mark.parametrize("item", [QuantizeStatic(), QuantizeDynamic()], ids=lambda item: item.name)
@pytest.mark.parametrize("name", ["lstm", "gru-bidirectional"])
def test_every_product_is_one_of_integers(name: str, item: Pass) -> None:
    graph = imported(name)
    result = quantized(graph, item)
    kind = name.split("-")[0]
    assert count(result)[f"{kind}_integer"] == 2 and count(result)["linear_integer"] == 3
    assert not count(result)[kind] and not count(result)["linear"]
    assert coverage(result).integer_share == 1.0
    assert relative_error(Interpreter(result)(X)[0], Interpreter(graph)(X)[0]) < 0.03


def test_weights_are_symmetric_codes_and_the_scale_is_fixed() -> None:
    """numerics: Q1, Q8."""
    result = quantized(imported("gru"), QuantizeRecurrent())
    layer = next(operation for operation in result.operations if operation.name == "gru_integer")
    codes, multiplier, scale = (layer.operand(slot).constant for slot in (2, 3, 4))
    weight = MODELS["gru"].layers.weight_hh_l0.detach()  # type: ignore[union-attr]
    assert codes is not None and multiplier is not None and scale is not None
    assert codes.dtype is torch.int8 and codes.abs().max() == 127
    assert scale.item() == torch.tensor(1 / 127).item()
    restored = codes.double() * multiplier.double()[:, None] / scale.double()
    assert bool(((restored - weight).abs() <= weight.abs().amax(1, keepdim=True) / 127 * 0.5001).all())


def test_an_excluded_layer_stays_in_floating_point() -> None:
    for item in (QuantizeStatic(exclude=("layers",)), QuantizeDynamic(exclude=("layers",))):
        result = quantized(imported("lstm"), item)
        assert count(result)["lstm"] == 2 and count(result)["linear_integer"] == 3
    result = quantized(imported("lstm"), QuantizeStatic(exclude=("layers.weight_ih_l0",)))
    assert count(result)["linear"] == 1 and count(result)["lstm_integer"] == 2
    with pytest.raises(PassError, match="no layer has a module path like encoder"):
        quantized(imported("lstm"), QuantizeRecurrent(exclude=("encoder",)))


def test_a_projection_is_declined_with_the_reason() -> None:
    model = Tagger(torch.nn.LSTM, proj_size=24 // 2)
    model.head = torch.nn.Linear(12, 5)
    with pytest.raises(PassError, match="has a projection, whose outputs have no bound"):
        quantized(import_model(model.eval(), (X,)), QuantizeRecurrent())


def test_a_graph_without_such_layers_is_an_error() -> None:
    with pytest.raises(PassError, match="could change nothing"):
        quantized(import_model(torch.nn.Linear(12, 3).eval(), (X,)), QuantizeRecurrent())


def test_the_projections_may_be_hoisted_before() -> None:
    graph = imported("lstm")
    hoisted = HoistRecurrentProjections().run(graph, Context()).graph
    twice, once = (Interpreter(quantized(item, QuantizeRecurrent()))(X)[0] for item in (hoisted, graph))
    assert torch.equal(twice, once)


# numerics: Q12
@pytest.mark.parametrize(
    ("name", "item"),
    [("lstm", QuantizeStatic()), ("gru", QuantizeDynamic()), ("lstm-bidirectional", QuantizeRecurrent())],
    ids=["static", "dynamic", "recurrent"],
)
def test_compiled_code_does_what_the_interpreter_does(name: str, item: Pass) -> None:
    model = MODELS[name].eval()
    compiled = whet.optimize(model, target="x86", example_inputs=(X,), passes=[item], calibration=BATCHES)
    graph = PassManager([item]).run(imported(name), Context(target=get_target("x86"), calibration=BATCHES)).graph
    assert relative_error(compiled(X), Interpreter(graph)(X)[0]) <= COMPILED_TOLERANCE
    assert relative_error(compiled(X), model(X).detach()) < 0.03
