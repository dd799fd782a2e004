"""Everything that can be imported, and where example inputs are found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.fx.passes.shape_prop import ShapeProp

from tests.frontend.operators import randn
from whet.errors import CaptureError
from whet.frontend import import_model
from whet.frontend.examples import find_example_inputs
from whet.ir import Graph, Interpreter

X = randn(2, 3)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout()).eval()


def agrees(graph: Graph, model: nn.Module) -> None:
    torch.testing.assert_close(Interpreter(graph)(X)[0], model(X))


def test_module(model: nn.Module) -> None:
    agrees(import_model(model, (X,)), model)
    agrees(import_model(model, X), model)
    agrees(import_model(model, {"input": X}), model)
    agrees(import_model(model, example_kwargs={"input": X}), model)


def test_traced_module(model: nn.Module) -> None:
    traced = torch.fx.symbolic_trace(model)
    agrees(import_model(traced, (X,)), model)
    with pytest.raises(CaptureError, match="example_inputs"):
        import_model(traced)
    ShapeProp(traced).propagate(X)
    agrees(import_model(traced), model)


def test_program_in_every_dialect(model: nn.Module, tmp_path: Path) -> None:
    program = torch.export.export(model, (X,))
    agrees(import_model(program), model)
    agrees(import_model(program.run_decompositions()), model)
    agrees(import_model(program.module()), model)
    torch.export.save(program, tmp_path / "model.pt2")
    agrees(import_model(tmp_path / "model.pt2"), model)
    agrees(import_model(str(tmp_path / "model.pt2")), model)


def test_decomposed_programs() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(3), nn.GroupNorm(2, 4), nn.GELU()
    ).eval()
    x = randn(2, 3, 9, 9)
    program = torch.export.export(model, (x,)).run_decompositions()
    torch.testing.assert_close(Interpreter(import_model(program))(x)[0], model(x))


class Declares(nn.Module):
    """Has whatever attribute a test gives it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@pytest.mark.parametrize("declared", [X, (X,), [X], {"x": X}], ids=["tensor", "tuple", "list", "dict"])
def test_lightning_modules_say_their_input(declared: object) -> None:
    model = Declares().eval()
    model.example_input_array = declared  # type: ignore[assignment]
    agrees(import_model(model), model)


def test_timm_models_say_their_size() -> None:
    model = Declares().eval()
    model.pretrained_cfg = {"input_size": (3, 8, 8)}  # type: ignore[assignment]
    assert import_model(model).inputs[0].type.shape == (1, 3, 8, 8)


def test_transformers_say_their_inputs() -> None:
    model = Declares().eval()
    model.dummy_inputs = {"x": X}  # type: ignore[assignment]
    agrees(import_model(model), model)


def test_decoders_are_taken_without_their_cache() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(use_cache=True)
            self.dummy_inputs = {"x": X}

        def forward(self, x: Tensor, use_cache: bool = True) -> tuple[Tensor, ...]:
            return (x, x) if use_cache else (x,)

    assert len(import_model(Decoder().eval()).outputs) == 1


def test_found_inputs_are_the_same_every_time() -> None:
    model = Declares().eval()
    model.pretrained_cfg = {"input_size": (3, 4, 4)}  # type: ignore[assignment]
    (first,), _ = find_example_inputs(model)
    (second,), _ = find_example_inputs(model)
    assert torch.equal(first, second)


def test_otherwise_the_error_says_what_to_pass() -> None:
    with pytest.raises(CaptureError, match=r"Declares.*example_inputs=\(torch\.randn"):
        import_model(Declares().eval())


def test_the_model_is_not_changed(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = X.clone()
    import_model(model, (x,))
    assert torch.equal(x, X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_locations_name_the_module_and_the_line(model: nn.Module) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).softmax(-1)

    graph = import_model(Outer().eval(), (X,))
    places = {operation.name: operation.location for operation in graph.operations}
    assert places["linear"].module == "inner.0"
    assert places["softmax"].file == __file__
    assert places["softmax"].line > 0
