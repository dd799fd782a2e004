"""Regions that torch.export leaves: gradients switched off, autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.frontend.operators import operations, randn
from whet.errors import CaptureError
from whet.frontend import import_model
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
    assert wrappers
    torch.testing.assert_close(Interpreter(import_model(program))(X)[0], model(X))


def test_dropout_inside_of_a_region() -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return nn.functional.dropout(x)

    with pytest.raises(CaptureError, match="training mode"):
        import_model(Drops().eval(), (X,))
