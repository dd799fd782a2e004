"""What layers read: im2col against the layers themselves, memory, and useless data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.passes.equality import build, weight
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Graph, Interpreter, Value
from whet.passes import AssignLayout, Context
from whet.passes.quantization.layerwise import layer_inputs
from whet.passes.quantization.rounding import LayerInputs


def inputs_of(graph: Graph, batches: Any, **options: Any) -> list[LayerInputs]:
    layers = [operation for operation in graph.operations if operation.name in ("conv", "linear")]
    found = dict(layer_inputs(graph, layers, Context(calibration=batches), **options))
    return [found[layer] for layer in layers]


@settings(max_examples=20, deadline=None)
@given(
    spatial=st.integers(1, 3),
    groups=st.sampled_from((1, 2, 4)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    last=st.booleans(),
)
def test_moments_give_the_energy_and_mean_of_a_convolutions_output(
    spatial: int, groups: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int], last: bool
) -> None:
    tensor = weight(4, 4 // groups, *([kernel] * spatial))
    options = {
        "stride": (stride,) * spatial,
        "padding": (padding,) * spatial,
        "dilation": (dilation,) * spatial,
        "groups": groups,
        "layout": "channels_last" if last else "channels_first",
    }
    shape = (2, *([6] * spatial), 4) if last else (2, 4, *([6] * spatial))
    graph = build(lambda b, x: b.conv(x, b.constant(tensor), None, **options), shape)
    x = weight(*shape, seed=1)
    (inputs,) = inputs_of(graph, [(x,)])
    y = Interpreter(graph)(x)[0].double()
    y = y.movedim(-1 if last else 1, 0).flatten(1)
    rows = tensor.double().reshape(groups, 4 // groups, -1)
    assert inputs.rows == y.shape[1]
    energy = ((rows @ inputs.gram.double()) * rows).sum(2).flatten()
    mean = (rows @ inputs.mean.double()[:, :, None]).flatten()
    torch.testing.assert_close(energy, y.square().mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean, y.mean(1), rtol=1e-4, atol=1e-5)


def network(b: Any, x: Value) -> Value:
    hidden = b.relu(b.linear(x, b.constant(weight(6, 4)), None))
    left = b.linear(hidden, b.constant(weight(5, 6)), None)
    result: Value = b.add(left, b.linear(hidden, b.constant(weight(5, 6, seed=1)), None))
    return result


def test_layers_that_read_one_value_share_their_moments_and_memory_is_bounded() -> None:
    graph = build(network, (3, 7, 4))
    batches = [(weight(3, 7, 4, seed=seed),) for seed in range(4)]
    first, left, right = inputs_of(graph, batches)
    assert left is right and first.rows == 4 * 21
    calls = []
    again = inputs_of(graph, lambda: calls.append(0) or iter(batches), memory=1)
    assert len(calls) == 3, "counted once, then one run a chunk"
    assert torch.equal(again[1].gram, left.gram) and torch.equal(again[0].mean, first.mean)


def test_a_sample_of_rows_is_drawn_by_the_seed() -> None:
    graph = build(network, (3, 7, 4))
    batches = [(weight(3, 7, 4, seed=seed),) for seed in range(4)]
    full, some = inputs_of(graph, batches)[1], inputs_of(graph, batches, rows=40)[1]
    assert some.rows == 40 and not torch.equal(some.gram, full.gram)
    assert torch.equal(some.gram, inputs_of(graph, batches, rows=40)[1].gram)
    assert float((some.gram - full.gram).norm() / full.gram.norm()) < 0.5


def test_channels_last_reads_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2)).eval()
    x = weight(2, 4, 6, 6)
    graph = import_model(model, (x,))
    last = AssignLayout()(graph).graph
    for first, second in zip(inputs_of(graph, [(x,)]), inputs_of(last, [(x,)]), strict=True):
        torch.testing.assert_close(first.gram, second.gram)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        (None, "calibration="),
        ([], "empty"),
        ([(torch.full((3, 7, 4), math.nan),)], "batch 0 has NaN"),
        ([(torch.full((3, 7, 4), 3e38),)], "is not finite on the calibration data"),
    ],
)
def test_useless_data(batches: Any, said: str) -> None:
    with pytest.raises(PassError, match=said):
        inputs_of(build(network, (3, 7, 4)), batches)


def test_values_that_are_never_reached() -> None:
    graph = build(network, (0, 7, 4))
    with pytest.raises(PassError, match="calibration never reached"):
        inputs_of(graph, [(torch.zeros(0, 7, 4),)])


def test_other_operations_are_no_matrix_products() -> None:
    graph = build(lambda b, x: b.relu(x), (2, 3))
    with pytest.raises(PassError, match="none of linear, conv"):
        list(layer_inputs(graph, graph.operations, Context(calibration=[(torch.ones(2, 3),)])))
