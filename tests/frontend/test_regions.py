"""Regions that torch.export leaves: gradients switched off, autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.frontend.operators import operations, randn
from whet.frontend import import_model
from whet.frontend.regions import inline_regions
from whet.ir import DType, Interpreter

X = randn(2, 4)


class Region(nn.Module):
    """A part of the model under some context."""

    def __init__(self, device: str, enabled: bool) -> None:
        super().__init__()
        self.linear, self.device, self.enabled = nn.Linear(4, 4), device, enabled
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        with torch.autocast(self.device, enabled=self.enabled, dtype=torch.bfloat16):
            first, second = self.linear(x), x + self.shift
            with torch.no_grad():
                y = first.softmax(-1) + second
        with torch.set_grad_enabled(False):
            y = y * 2
        return y.float() + 1


@pytest.mark.parametrize(("device", "enabled"), [("cpu", False), ("cuda", True), ("cuda", False)])
def test_regions_that_change_nothing(device: str, enabled: bool) -> None:
    model = Region(device, enabled).eval()
    graph = import_model(model, (X,))
    assert "cast" not in operations(graph)
    torch.testing.assert_close(Interpreter(graph)(X)[0], model(X))


def test_autocast_of_this_processor_casts() -> None:
    model = Region("cpu", True).eval()
    graph = import_model(model, (X,))
    (linear,) = [op for op in graph.operations if op.name == "linear" and op.result.type.dtype is DType.BF16]
    assert linear.operand(0).type.dtype is DType.BF16
    torch.testing.assert_close(Interpreter(graph)(X)[0], model(X), rtol=2e-2, atol=2e-2)


def test_a_program_with_regions() -> None:
    model = Region("cpu", False).eval()
    program = torch.export.export(model, (X,))
    wrappers = [node for node in program.graph.nodes if "wrap_with" in str(node.target)]
    assert wrappers, "torch.export leaves no regions any more: frontend/regions.py can go"
    torch.testing.assert_close(Interpreter(import_model(program))(X)[0], model(X))


def test_inlining_keeps_the_meaning() -> None:
    model = Region("cuda", True).eval()
    program = inline_regions(torch.export.export(model, (X,)))
    assert not [node for node in program.graph.nodes if "wrap_with" in str(node.target)]
    torch.testing.assert_close(program.graph_module(*_arguments(program, X))[0], model(X))


def _arguments(program: torch.export.ExportedProgram, x: Tensor) -> list[Tensor]:
    stored = {**program.state_dict, **program.constants}
    return [stored[spec.target] if spec.target else x for spec in program.graph_signature.input_specs]
