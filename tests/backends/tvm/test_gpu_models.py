"""Small models compiled whole for CUDA give the interpreter's numbers on an emulated GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.models.mobilenet import InvertedResidual, conv_norm_relu6
from tests.backends.tvm.emulated_gpu import emulate, needs_compiler
from tests.e2e.networks import Encoder, ResidualConvs, relative_error, seeded
from whet.backends.tvm.prepare import prepare
from whet.frontend import import_model
from whet.ir.interpreter import Interpreter
from whet.ir.target import get_target
from whet.passes import QuantizeStatic
from whet.passes.base import Context
from whet.passes.manager import PassManager

pytestmark = [needs_compiler, pytest.mark.timeout(600)]

TOLERANCES = {torch.float16: 5e-3, torch.float32: 1e-4}


class MobileLike(nn.Module):
    """MobileNetV2's beginning and end, with few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_norm_relu6(3, 16, 3, 2), InvertedResidual(16, 16, 1, 4), InvertedResidual(16, 24, 2, 4)
        )
        self.classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return scores


def picture(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """One small picture."""
    return (torch.randn(1, 3, 18, 18).to(dtype),)


def tokens(_: torch.dtype) -> tuple[Tensor, ...]:
    """Two sentences of nine tokens, one of them padded."""
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    return torch.randint(0, 50, (2, 9)), mask


MODELS: dict[str, tuple[type[nn.Module], Any, int]] = {
    "mobile": (MobileLike, picture, 3),
    "residual": (ResidualConvs, picture, 2),
    "attention": (Encoder, tokens, 3),
}
"""Name -> model, its inputs, and how many kernels go to tensor cores at least."""


def check(graph: Any, inputs: Sequence[Tensor], architecture: str, tolerance: float) -> Counter[str]:
    """Compare every output, and count the rules that scheduled the kernels."""
    graph = prepare(graph, get_target(f"cuda:{architecture}"))
    expected = Interpreter(graph)(*inputs)
    actual, gpu = emulate(graph, inputs, architecture)
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one.float(), other.float()) <= tolerance
    return Counter(kernel.schedule for kernel in gpu.emitted.kernels)


@pytest.mark.parametrize("name", MODELS)
def test_half_precision(name: str) -> None:
    model, inputs, fewest = MODELS[name]
    graph = import_model(seeded(model()).half(), inputs(torch.float16))
    rules = check(graph, inputs(torch.float16), "sm_80", TOLERANCES[torch.float16])
    assert rules["tensor_core"] >= fewest
    assert not any(rule.startswith("dlight") for rule in rules), "one of TVM's own rules took a kernel"


def test_integers() -> None:
    inputs = picture(torch.float32)
    graph = import_model(seeded(MobileLike()), inputs)
    context = Context(target=get_target("cuda:sm_80"), calibration=[inputs])
    quantized = PassManager([QuantizeStatic()]).run(graph, context).graph
    rules = check(quantized, inputs, "sm_80", TOLERANCES[torch.float32])
    assert rules["tensor_core"] >= 3
