from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tvm import te, tirx

from tests.backends.tvm.kernel_run import Run, run
from whet.backends.tvm.kernels import math as fast

REFERENCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "expm1": torch.expm1,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
}
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}
SMALLEST_NORMAL = 1.1754943508222875e-38
# exp of these is a normal number.
SAMPLES = torch.cat([torch.linspace(-87.3, 88.7, 20001), torch.randn(20000), torch.randn(6000) * 1e-3])
SPECIAL = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, 88.72, 88.73, -103.0, -104.0])


def apply(name: str, x: torch.Tensor, dtype: str = "float32") -> Run:
    data = te.placeholder(tuple(x.shape), dtype, name="data")
    function = getattr(fast, name)
    return run([data, te.compute(data.shape, lambda *i: function(data[i]))], [x], x.shape)


@pytest.mark.parametrize("name", REFERENCES)
def test_relative_error(name: str) -> None:
    exact = REFERENCES[name](SAMPLES.double())
    actual = torch.from_numpy(apply(name, SAMPLES).output.copy()).double()
    normal = exact.abs() >= SMALLEST_NORMAL
    assert float(((actual - exact).abs() / exact.abs())[normal].max()) <= 1e-6


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_error(name: str) -> None:
    """Relative to the input: the tails of these functions are differences of numbers near one."""
    exact = ACTIVATIONS[name](SAMPLES.double())
    actual = torch.from_numpy(apply(name, SAMPLES).output.copy()).double()
    assert float(((actual - exact).abs() / SAMPLES.double().abs().clamp(min=1e-3)).max()) <= 1e-6


@pytest.mark.parametrize("name", REFERENCES)
def test_special_values(name: str) -> None:
    expected = REFERENCES[name](SPECIAL)
    actual = torch.from_numpy(apply(name, SPECIAL).output.copy())
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0.0, equal_nan=True)


def test_denormal_results_of_exp() -> None:
    x = torch.linspace(-103.9, -87.4, 4001)
    exact = torch.exp(x.double())
    actual = torch.from_numpy(apply("exp", x).output.copy()).double()
    assert float((actual - exact).abs().max()) <= 2.0**-149


@pytest.mark.parametrize("name", [*REFERENCES, *ACTIVATIONS])
def test_no_call_for_a_lane(name: str) -> None:
    assembly = apply(name, torch.zeros(64)).assembly
    called = re.findall(r"(?:call|jmp)q?\s+(\w+f?)@", assembly)
    assert not {"expf", "erff", "tanhf", "expm1f"} & set(called)


def test_other_dtypes() -> None:
    x = torch.linspace(-4, 4, 64, dtype=torch.float64)
    np.testing.assert_allclose(apply("erf", x, "float64").output, torch.erf(x).numpy(), rtol=1e-12)
    half = apply("tanh", x.half(), "float16")
    np.testing.assert_allclose(half.output, torch.tanh(x.half()).numpy(), rtol=2e-3)


def test_functions_of_functions() -> None:
    """Names bound inside an expression do not clash where a stage is inlined twice."""
    x = torch.linspace(-5, 5, 1000)
    data = te.placeholder((1000,), name="data")
    inner = te.compute(data.shape, lambda i: fast.silu(data[i]), name="inner")
    outer = te.compute(data.shape, lambda i: fast.gelu(inner[i]) + fast.exp(inner[i] - data[i]), name="outer")
    silu = torch.nn.functional.silu(x.double())
    expected = torch.nn.functional.gelu(silu) + torch.exp(silu - x)
    np.testing.assert_allclose(run([data, outer], [x], (1000,)).output, expected.numpy(), rtol=2e-6)


def test_one_stage_read_at_two_places() -> None:
    x = torch.linspace(-5, 5, 1025)
    data = te.placeholder((1025,), name="data")
    inner = te.compute(data.shape, lambda i: fast.silu(data[i]), name="inner")
    outer = te.compute((1024,), lambda i: inner[i] * inner[i + 1], name="outer")
    silu = torch.nn.functional.silu(x.double())
    result = run([data, outer], [x], (1024,))
    np.testing.assert_allclose(result.output, (silu[:-1] * silu[1:]).numpy(), rtol=2e-6)


def test_one_expression_used_twice() -> None:
    x = torch.linspace(-5, 5, 1024)
    data = te.placeholder((1024,), name="data")

    def twice(i: tirx.Var) -> tirx.Expr:
        power = fast.exp(data[i])
        return power * power + power

    power = torch.exp(x.double())
    result = run([data, te.compute(data.shape, twice)], [x], (1024,))
    assert result.rule == "stages"
    np.testing.assert_allclose(result.output, (power * power + power).numpy(), rtol=2e-6)


def test_expression_dtype() -> None:
    assert fast.expression_dtype(tirx.Var("x", "float16")) == "float16"
