"""Precision by measured times: what is slower in integers stays in float, and the fastest graph is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import whet
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Graph
from whet.passes import Context, PassManager, QuantizeStatic, QuantizeWhereFaster
from whet.passes.quantization.coverage import coverage

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def graph() -> Graph:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    return import_model(model.eval(), (X,))


def timed(integer: dict[str, float]) -> Callable[[Graph], dict[str, float]]:
    """A device on which a float layer takes 1 s, and an integer layer what `integer` says (else 0.5 s)."""

    def latency(graph: Graph) -> dict[str, float]:
        seconds = {}
        for operation in graph.operations:
            module = operation.location.module
            if operation.name in ("conv", "linear"):
                seconds[module] = 1.0
            elif operation.name in ("conv_integer", "linear_integer"):
                seconds[module] = integer.get(module, 0.5)
        return seconds

    return latency


def integer_layers(graph: Graph) -> set[str]:
    return {operation.location.module for operation in graph.operations if operation.name.endswith("_integer")}


def run(integer: dict[str, float]) -> tuple[Graph, str]:
    context = Context(calibration=[(X,)], latency=timed(integer))
    outcome = PassManager([QuantizeWhereFaster()]).run(graph(), context)
    return outcome.graph, str(outcome.report)


def test_all_layers_are_quantized_where_integers_are_faster() -> None:
    assert integer_layers(run({})[0]) == {"0", "2", "5"}


def test_a_layer_that_integers_slow_down_stays_in_float() -> None:
    mixed, report = run({"2": 1.5})
    assert integer_layers(mixed) == {"0", "5"}
    assert "left in float" in report
    assert coverage(mixed).integer_share < 1


def test_noise_is_no_reason() -> None:
    assert integer_layers(run({"2": 1.01})[0]) == {"0", "2", "5"}


def test_nothing_is_quantized_where_float_is_faster_and_the_times_are_told() -> None:
    with pytest.raises(PassError, match=r"3000.000 ms in float, 6000.000 ms at best in integers"):
        run({"0": 2.0, "2": 2.0, "5": 2.0})


def test_it_needs_a_device() -> None:
    with pytest.raises(PassError, match="device to measure on"):
        PassManager([QuantizeWhereFaster()]).run(graph(), Context(calibration=[(X,)]))


def test_on_this_machine_the_result_is_compiled_and_exact() -> None:
    """Wide layers: of narrow ones it is the machine's load that decides which precision is faster."""
    torch.manual_seed(0)
    x = torch.randn(1, 64, 28, 28)
    body = nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(64 * 24 * 24, 4))
    compiled = whet.optimize(
        import_model(model.eval(), (x,)),
        passes=[QuantizeWhereFaster(QuantizeStatic())],
        calibration=[(x,)],
        progress=False,
    )
    assert integer_layers(compiled.graph)
    reference = whet.optimize(compiled.graph, backend="reference", progress=False)
    torch.testing.assert_close(torch.as_tensor(compiled(x)), torch.as_tensor(reference(x)), rtol=1e-4, atol=1e-6)
