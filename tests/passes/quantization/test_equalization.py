"""Cross-layer equalization: the same function, with channels of like ranges."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from tests.passes.equality import assert_same_results, count, weight
from tests.passes.networks import convolutional_graphs, randomize_statistics
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Graph, print_graph, verify
from whet.passes import Context, EqualizeCrossLayer, PassManager, Tracer
from whet.passes.quantization.scaling import input_ranges, output_ranges
from whet.passes.weights import LAYERS

QUICK = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


def uneven(model: nn.Module) -> nn.Module:
    """The model with output channels of very different sizes."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
                dim = 1 if isinstance(module, nn.ConvTranspose2d) else 0
                size = module.weight.shape[dim]
                steep = torch.logspace(-2, 2, size)[torch.randperm(size, generator=torch.Generator().manual_seed(size))]
                shape = [1] * module.weight.dim()
                shape[dim] = size
                module.weight.mul_(steep.reshape(shape))
    return randomize_statistics(model)


def equalized(model: nn.Module, *shape: int, **options: object) -> tuple[Graph, Graph]:
    torch.manual_seed(0)
    before = import_model(uneven(model), (torch.randn(shape),))
    text = print_graph(before)
    after = PassManager([EqualizeCrossLayer(**options)]).run(before).graph  # type: ignore[arg-type]
    assert print_graph(before) == text
    verify(after)
    return before, after


def layers(graph: Graph) -> list[tuple[Tensor, Tensor]]:
    """What makes each output channel and reads each input channel, layer by layer."""
    found = []
    for operation in graph.operations:
        if operation.name in LAYERS:
            tensor = operation.operand(1).constant
            assert tensor is not None
            found.append((output_ranges(operation, tensor), input_ranges(operation, tensor)))
    return found


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), (3, 5)),
    "no activation": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4)), (3, 5)),
    "leaky": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(), nn.Conv2d(8, 4, 1)), (1, 3, 6, 6)),
    "pooled": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
        ),
        (2, 3, 10, 10),
    ),
    "global": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        ),
        (2, 3, 6, 6),
    ),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 1, groups=2)),
        (1, 4, 5, 5),
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 8, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.Conv2d(6, 2, 1)
        ),
        (1, 4, 5, 5),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_pairs_have_equal_ranges_and_compute_the_same(name: str) -> None:
    make, shape = MODELS[name]
    before, after = equalized(make(), *shape)
    assert_same_results(before, after)
    ranges = layers(after)
    for (made, _), (_, read) in pairwise(ranges):
        read = read.reshape(len(made), -1).amax(1)
        assert torch.allclose(made, read, rtol=0.02)
    assert any(not torch.allclose(made, torch.ones_like(made) * made[0], rtol=0.5) for made, _ in layers(before))


def test_a_depthwise_chain_is_equalized_until_none_changes() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )
    before, after = equalized(model, 1, 3, 5, 5, tolerance=1e-5)
    assert_same_results(before, after)
    (first, _), (made, read), (_, last) = layers(after)
    assert torch.allclose(first, read, rtol=1e-3) and torch.allclose(made, last, rtol=1e-3)


class Shared(nn.Module):
    """One value that two layers read, beside one that an addition reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = torch.relu(self.left(x)) + self.right(x)
        result: Tensor = self.last(y)
        return result


def test_readers_of_one_value_share_its_factors() -> None:
    before, after = equalized(Shared(), 2, 4)
    assert_same_results(before, after)
    (made, _), (_, left), (_, right), _ = layers(after)
    assert torch.allclose(made, torch.maximum(left, right), rtol=1e-2)


def relu6() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 2, 1))


def test_bounds_follow_their_channels() -> None:
    """Large inputs, so that the bound of relu6 is reached."""
    before, after = equalized(relu6(), 1, 3, 8, 8)
    x = 100 * weight(1, 3, 8, 8)
    assert_same_results(before, after, [x])
    assert count(after)["minimum"] == 2 and count(after)["clamp"] == 0


def test_bounds_may_be_dropped() -> None:
    _, after = equalized(relu6(), 1, 3, 8, 8, clamps="relu")
    assert count(after)["relu"] == 2 and count(after)["minimum"] == 0


def test_bounded_activations_can_be_left_alone() -> None:
    with pytest.raises(PassError, match=r'could change nothing[\s\S]*upper bound: clamps="channel"'):
        equalized(relu6(), 1, 3, 8, 8, clamps="keep")


@QUICK
@given(graph=convolutional_graphs())
def test_random_networks_stay_the_same_function(graph: Graph) -> None:
    for clamps in ("keep", "channel"):
        result = EqualizeCrossLayer(clamps=clamps)(graph)
        verify(result.graph)
        assert result.modified == (result.graph is not graph)
        assert_same_results(graph, result.graph)


def test_excluded_layers_keep_their_weights() -> None:
    before, after = equalized(nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)]), 2, 4, exclude=("0", "3"))
    kept = [x.operand(1).constant for x in before.operations if x.name == "linear"]
    now = [x.operand(1).constant for x in after.operations if x.name == "linear"]
    assert [first is second for first, second in zip(kept, now, strict=True)] == [True, False, False, True]


def test_reasons_are_told() -> None:
    tracer = Tracer()
    graph = import_model(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4)).eval(), (torch.randn(2, 4),))
    assert not EqualizeCrossLayer()(graph, Context(tracer=tracer)).modified
    assert "sigmoid does not commute with factors" in str(tracer) and "comes from outside" in str(tracer)


def test_bad_options() -> None:
    with pytest.raises(PassError, match="clamps is one of keep, channel, relu, got 'drop'"):
        EqualizeCrossLayer(clamps="drop")
    with pytest.raises(PassError, match="rounds must be"):
        EqualizeCrossLayer(rounds=0)
    with pytest.raises(PassError, match=r"no layer has a module path like nothing\.\*"):
        equalized(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 2, 4, exclude=("nothing.*",))
