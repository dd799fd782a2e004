"""LSTM, GRU and simple recurrent layers: captured whole, one operation a layer and direction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.frontend.operators import check, imported, operations, randn
from whet.errors import CaptureError
from whet.frontend import import_model
from whet.ir import Interpreter

X = randn(5, 2, 3)
LAYERS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
every_layer = pytest.mark.parametrize("name", LAYERS)


def flat(layer: nn.Module, *inputs: Any) -> list[Tensor]:
    output, states = layer(*inputs)
    return [output, *(states if isinstance(states, tuple) else (states,))]


@every_layer
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True},
        {"batch_first": True, "bias": False},
        {"num_layers": 2, "dropout": 0.5},
    ],
    ids=str,
)
def test_layers(name: str, options: dict[str, Any]) -> None:
    layer = LAYERS[name](3, 4, **options).eval()
    graph = check(lambda x: flat(layer, x), X)
    expected = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    assert operations(graph).count(name) == expected


@every_layer
def test_without_a_batch(name: str) -> None:
    layer = LAYERS[name](3, 4).eval()
    check(lambda x: flat(layer, x), X[:, 0])


def test_initial_states() -> None:
    lstm, gru = nn.LSTM(3, 4).eval(), nn.GRU(3, 4, bidirectional=True).eval()
    check(lambda x, h, c: flat(lstm, x, (h, c)), X, randn(1, 2, 4), randn(1, 2, 4))
    check(lambda x, h: flat(gru, x, h), X, randn(2, 2, 4))


def test_projection_and_relu() -> None:
    projected = nn.LSTM(3, 4, 2, proj_size=2, bidirectional=True).eval()
    check(lambda x: flat(projected, x), X)
    rectified = nn.RNN(3, 4, nonlinearity="relu").eval()
    check(lambda x: flat(rectified, x), X)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(cell: Any) -> None:
    layer = cell(3, 4)
    check(lambda x: layer(x), X[0])


@every_layer
def test_any_length(name: str) -> None:
    layer = LAYERS[name](3, 4, bidirectional=True, batch_first=True).eval()
    graph = import_model(layer, (X,), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},))
    for shape in ((2, 9, 3), (1, 1, 3)):
        x = randn(*shape)
        for result, expected in zip(Interpreter(graph)(x), flat(layer, x), strict=True):
            torch.testing.assert_close(result, expected)


def test_a_program_that_holds_torchs_operator() -> None:
    layer = nn.LSTM(3, 4).eval()
    graph = import_model(torch.export.export(layer, (X,)))
    assert operations(graph).count("lstm") == 1
    torch.testing.assert_close(Interpreter(graph)(X)[0], layer(X)[0])


def test_torchs_functions_are_as_before_after_capture() -> None:
    before = torch._VF.lstm  # type: ignore[attr-defined]
    imported(nn.LSTM(3, 4), X)
    assert torch._VF.lstm == before  # type: ignore[attr-defined]


def test_packed_sequences_are_refused() -> None:
    layer = nn.LSTM(3, 4)

    def packed(x: Tensor, lengths: Tensor) -> Tensor:
        inside, _ = layer(nn.utils.rnn.pack_padded_sequence(x, lengths))
        result: Tensor = nn.utils.rnn.pad_packed_sequence(inside)[0]
        return result

    with pytest.raises(CaptureError, match=r"pack_padded_sequence.*padded tensor"):
        imported(packed, X, torch.tensor([5, 3]))
