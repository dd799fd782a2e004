"""SmoothQuant and AWQ: the same function, with sizes moved from activations into weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.passes.equality import assert_same_results, count
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Graph, Interpreter, print_graph, verify
from whet.passes import AWQ, Context, Pass, PassManager, SmoothQuant
from whet.passes.quantization.layerwise import layer_inputs
from whet.passes.quantization.parameters import group_scales
from whet.passes.quantization.rounding import Nearest, output_error, restored

WIDTH = 8


class PreNorm(nn.Module):
    """Query, key and value behind one norm, a gated feed-forward layer, residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        scores = torch.softmax(self.query(y) @ self.key(y).transpose(1, 2), -1)
        x = x + self.out(scores @ self.value(y))
        y = self.second(x)
        result: Tensor = x + self.down(torch.sigmoid(self.gate(y)) * self.up(y))
        return result


class PostNorm(nn.Module):
    """The value behind the norm is the residual too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        result: Tensor = x + self.second(torch.nn.functional.gelu(self.first(x)))
        return result


def feed_forward() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, WIDTH))


def with_outliers(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1 if "norm" in name else 0.3))
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight[2] = 40.0
    return model.eval()


BATCHES = [(torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed)),) for seed in range(3)]
MODELS: dict[str, Callable[[], nn.Module]] = {
    "pre": PreNorm,
    "post": PostNorm,
    "feed": feed_forward,
    "single": lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16)),
}


@cache
def imported(name: str, seed: int = 0) -> Graph:
    return import_model(with_outliers(MODELS[name](), seed), BATCHES[0])


def rescaled(item: Pass, name: str) -> tuple[Graph, Graph]:
    before = imported(name)
    text = print_graph(before)
    after = PassManager([item]).run(before, Context(calibration=BATCHES)).graph
    assert print_graph(before) == text
    verify(after)
    return before, after


@pytest.mark.parametrize(
    "item", [SmoothQuant(), SmoothQuant(alpha=1.0), SmoothQuant(alpha=0.0), AWQ(bits=3, group_size=4)]
)
@pytest.mark.parametrize("name", MODELS)
def test_the_function_stays(name: str, item: Pass) -> None:
    before, after = rescaled(item, name)
    for batch in BATCHES:
        assert_same_results(before, after, batch)


@settings(max_examples=8, deadline=None)
@given(st.floats(0, 1), st.integers(0, 2), st.booleans())
def test_the_function_stays_for_any_alpha(alpha: float, seed: int, insert: bool) -> None:
    before = imported("pre", seed)
    after = SmoothQuant(alpha=alpha, insert=insert)(before, Context(calibration=BATCHES)).graph
    assert_same_results(before, after, BATCHES[0])


def test_norms_and_products_take_the_factors_in() -> None:
    """The output projection reads a product of matrices: only there nothing can take them in."""
    before, after = rescaled(SmoothQuant(), "pre")
    assert count(after)["mul"] == count(before)["mul"] + 1
    _, without = rescaled(SmoothQuant(insert=False), "pre")
    assert count(without) == count(before)
    before, after = rescaled(SmoothQuant(), "feed")
    assert count(after) == count(before), "norm and relu let everything through"


def test_what_is_read_elsewhere_gets_a_multiplication_or_nothing() -> None:
    before, after = rescaled(SmoothQuant(), "post")
    assert count(after)["mul"] == count(before)["mul"] + 2
    with pytest.raises(PassError, match=r"could change nothing[\s\S]*read elsewhere[\s\S]*gelu does not commute"):
        rescaled(SmoothQuant(insert=False), "post")


def maxima(graph: Graph) -> list[tuple[Tensor, Tensor]]:
    """For every linear layer, the largest |x| and |W| of each channel that it reads."""
    seen: dict[Any, Tensor] = {}

    def hook(operation: Any, results: tuple[Tensor, ...]) -> None:
        for value, tensor in zip(operation.results, results, strict=True):
            if tensor.dim() == 3:
                now = tensor.abs().reshape(-1, tensor.shape[-1]).amax(0)
                seen[value] = torch.maximum(seen[value], now) if value in seen else now

    interpreter = Interpreter(graph, hook=hook)
    for batch in BATCHES:
        interpreter(*batch)
    layers = [operation for operation in graph.operations if operation.name == "linear"]
    return [(seen[layer.operand(0)], layer.operand(1).constant.abs().amax(0)) for layer in layers]  # type: ignore[union-attr]


def test_half_of_the_way_makes_both_sides_equal() -> None:
    """alpha = 0.5: max |x / s| = max |W s| = √(max |x| · max |W|) for each channel."""
    before, after = rescaled(SmoothQuant(), "single")
    ((x, w),), ((smooth, larger),) = maxima(before), maxima(after)
    torch.testing.assert_close(smooth, larger, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(smooth, (x * w).sqrt(), rtol=1e-4, atol=1e-6)


def test_excluded_layers_still_read_what_they_did() -> None:
    """Of query, key and value one is left: its input is read elsewhere then, and the others get a multiplication."""
    before, after = rescaled(SmoothQuant(exclude=("key",)), "pre")
    assert_same_results(before, after, BATCHES[0])
    linear = [operation for operation in after.operations if operation.name == "linear"]
    (key,) = [operation for operation in linear if operation.location.module == "key"]
    (query,) = [operation for operation in linear if operation.location.module == "query"]
    assert key.operand(0).producer.name == "layer_norm" and query.operand(0).producer.name == "mul"  # type: ignore[union-attr]


def weight_only_error(graph: Graph, bits: int, group: int) -> float:
    """The mean relative error of the linear layers' outputs, were their weights quantized."""
    layers = [operation for operation in graph.operations if operation.name == "linear"]
    errors = []
    for layer, inputs in layer_inputs(graph, layers, Context(calibration=BATCHES)):
        tensor = layer.operand(1).constant
        assert tensor is not None
        scale = group_scales(tensor, group, bits).repeat_interleave(group, dim=1)
        zero, high = torch.zeros((), dtype=torch.int32), 2 ** (bits - 1) - 1
        errors.append(
            output_error(tensor, restored(Nearest().round(tensor, scale, zero, -high, high), scale, zero), inputs)
        )
    return sum(errors) / len(errors)


def test_awq_lowers_the_error_of_rounded_weights() -> None:
    before, after = rescaled(AWQ(bits=3, group_size=8), "pre")
    assert weight_only_error(after, 3, 8) < 0.8 * weight_only_error(before, 3, 8)


@pytest.mark.parametrize("item", [SmoothQuant(), AWQ()])
@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        (None, "calibration="),
        ([], "empty"),
        ((batch for batch in BATCHES), "read only once"),
        ([(torch.full((2, 5, WIDTH), math.nan),)], "batch 0 has NaN"),
    ],
)
def test_useless_data(item: Pass, calibration: Any, said: str) -> None:
    graph = imported("feed")
    with pytest.raises(PassError, match=said):
        item(graph, Context(calibration=calibration))


def test_bad_options() -> None:
    for make in (lambda: SmoothQuant(alpha=1.5), lambda: AWQ(bits=1), lambda: AWQ(grid=0), lambda: AWQ(group_size=0)):
        with pytest.raises(PassError, match="must be"):
            make()
    for item in (SmoothQuant(exclude=("none*",)), AWQ(exclude=("none*",))):
        with pytest.raises(PassError, match=r"no layer has a module path like none\*"):
            rescaled(item, "feed")


def test_a_network_without_linear_layers() -> None:
    graph = import_model(nn.Sequential(nn.ReLU()).eval(), BATCHES[0])
    with pytest.raises(PassError, match="SmoothQuant was asked for and could change nothing"):
        PassManager([SmoothQuant()]).run(graph, Context(calibration=BATCHES))
