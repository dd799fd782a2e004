"""Roundings and bias correction inside of the quantizers, and what remains of them in compiled code."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import whet
from tests.passes.equality import relative_error
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Graph, Interpreter, print_graph, verify
from whet.ir.target import get_target
from whet.passes import AWQ, Context, EqualizeCrossLayer, PassManager, QuantizeStatic, SmoothQuant
from whet.passes.quantization.adaround import AdaRound
from whet.passes.quantization.gptq import GPTQ
from whet.passes.quantization.rounding import Nearest, Rounding
from whet.passes.quantization.weights_only import QuantizeWeights
from whet.passes.weights import key_of


class Net(nn.Module):
    """Convolutions behind relus, whose inputs have a mean and go together; one of them grouped, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 16, 3, groups=2, bias=False)
        self.last = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.middle(torch.relu(self.first(x))))
        result: Tensor = self.last(x.mean((2, 3)))
        return result


def pictures(seed: int, count: int = 8) -> Tensor:
    """Smooth noise: neighbouring pixels and colours go together."""
    coarse = torch.randn(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed)) + 0.5
    return nn.functional.interpolate(coarse, size=(9, 9), mode="bilinear")


CALIBRATION = [(pictures(seed),) for seed in range(4)]
TEST = pictures(99, 64)


@cache
def imported() -> Graph:
    torch.manual_seed(0)
    return import_model(Net().eval(), (TEST[:8],), None, ({0: torch.export.Dim("batch", max=256)},))


def context(calibration: Any = None) -> Context:
    given = CALIBRATION if calibration is None else calibration
    return Context(target=get_target("avx512-vnni"), calibration=given)


def outputs(*passes: Any) -> Tensor:
    graph = imported()
    text = print_graph(graph)
    result = PassManager(passes).run(graph, context()).graph
    assert print_graph(graph) == text
    verify(result)
    return Interpreter(result)(TEST)[0]


def error(*passes: Any) -> float:
    return relative_error(outputs(*passes), Interpreter(imported())(TEST)[0])


QUANTIZERS = {
    "weights": lambda **options: QuantizeWeights(bits=4, **options),
    "groups": lambda **options: QuantizeWeights(bits=4, group_size=8, symmetric=False, **options),
    "static": lambda **options: QuantizeStatic(weight_bits=4, **options),
}


@pytest.mark.parametrize("rounding", [GPTQ(), AdaRound(steps=100, rate=0.05)], ids=["gptq", "adaround"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_learned_roundings_lower_the_error_of_the_network(name: str, rounding: Rounding) -> None:
    make = QUANTIZERS[name]
    assert error(make(rounding=rounding)) < 0.85 * error(make(rounding=Nearest()))


@pytest.mark.parametrize("name", ["weights", "static"])
def test_bias_correction_brings_the_mean_of_outputs_back(name: str) -> None:
    make = QUANTIZERS[name]
    expected = Interpreter(imported())(TEST)[0].mean(0)
    plain, corrected = (outputs(make(bias_correction=flag)).mean(0) for flag in (False, True))
    assert float((corrected - expected).norm()) < 0.6 * float((plain - expected).norm())
    assert error(make(bias_correction=True)) < error(make())


def test_a_layer_without_a_bias_gets_one() -> None:
    graph = PassManager([QuantizeWeights(bits=4, bias_correction=True)]).run(imported(), context()).graph
    (middle,) = [x for x in graph.operations if x.name == "conv" and x.location.module == "middle"]
    assert middle.operand(2).constant is not None and key_of(middle.operand(2)) == "middle.bias"


@pytest.mark.parametrize(
    "passes",
    [
        (EqualizeCrossLayer(), SmoothQuant(), QuantizeStatic(rounding=GPTQ(), bias_correction=True)),
        (AWQ(bits=4, group_size=8), QuantizeWeights(bits=4, group_size=8, rounding=GPTQ())),
    ],
    ids=["static", "weights"],
)
def test_compiled_code_computes_what_the_interpreter_does(passes: Any) -> None:
    compiled = whet.optimize(imported(), "x86", passes=list(passes), calibration=CALIBRATION, progress=False)
    x = TEST[:4]
    target = get_target("x86")
    expected = PassManager(passes).run(imported(), Context(target=target, calibration=CALIBRATION)).graph
    out, ref = torch.as_tensor(np.asarray(compiled(x))), Interpreter(expected)(x)[0]
    assert relative_error(out, ref) < 1e-4
    assert relative_error(ref, Interpreter(imported())(x)[0]) < 0.1


@pytest.mark.parametrize("options", [{"rounding": GPTQ()}, {"bias_correction": True}])
@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ([], "empty"),
        ((batch for batch in CALIBRATION), "read only once"),
        ([(torch.full((2, 3, 9, 9), math.nan),)], "batch 0 has NaN"),
    ],
)
def test_useless_data(options: Any, calibration: Any, said: str) -> None:
    with pytest.raises(PassError, match=said):
        QuantizeWeights(**options).run(imported(), context(calibration))
    with pytest.raises(PassError, match="calibration="):
        QuantizeWeights(**options).run(imported(), Context())
