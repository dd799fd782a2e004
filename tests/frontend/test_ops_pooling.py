"""Pooling of every kind, with and without the places of the maxima."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontend.operators import check, imported, integers, operations, randn
from tests.frontend.test_ops_normalization import Layers
from whet.errors import UnsupportedOpError

MAXIMUM = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE_MAXIMUM = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
ADAPTIVE_AVERAGE = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
POWER = {1: nn.LPPool1d, 2: nn.LPPool2d, 3: nn.LPPool3d}
dimensions = pytest.mark.parametrize("spatial", [1, 2, 3])


def _map(spatial: int) -> Tensor:
    return randn(2, 3, *[8] * spatial)


@dimensions
def test_max_pool(spatial: int) -> None:
    pool = MAXIMUM[spatial]
    layers = Layers(pool(3), pool(3, 2, 1), pool(2, 2, 0, 3), pool(3, 2, 1, ceil_mode=True), pool(3, 3, ceil_mode=True))
    assert operations(check(layers, _map(spatial))) == ["max_pool"] * 5
    check(layers, _map(spatial)[0])


@dimensions
def test_places_of_the_maxima(spatial: int) -> None:
    pool = MAXIMUM[spatial]
    both = [pool(3, 2, 1, 1, return_indices=True, ceil_mode=ceil) for ceil in (False, True)]

    def places(x: Tensor) -> list[Tensor]:
        return [item for layer in both for item in layer(x)] + [*both[0](x[0])]

    graph = check(places, _map(spatial))
    assert operations(graph).count("max_pool_with_indices") == 3


def test_unused_places_are_not_computed() -> None:
    graph = check(lambda x: F.max_pool2d(x, 2, return_indices=True)[0], _map(2))
    assert operations(graph) == ["max_pool"]


def test_unpooling() -> None:
    pool, unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    check(lambda x: unpool(*pool(x)), _map(2))


@dimensions
def test_avg_pool(spatial: int) -> None:
    pool = AVERAGE[spatial]
    layers = [
        pool(3, 2, 1, ceil_mode=ceil, count_include_pad=count) for ceil in (False, True) for count in (False, True)
    ]
    layers += [pool(3, 2, 1, divisor_override=5)] if spatial > 1 else []
    assert set(operations(check(Layers(*layers), _map(spatial)))) == {"avg_pool"}
    check(layers[0], _map(spatial)[0])


def test_avg_pool_of_integers() -> None:
    check(lambda x: [F.avg_pool2d(x, 3, 2, 1), F.avg_pool1d(x[0], 2)], integers(2, 3, 7, 7, low=-50, high=50))


@dimensions
def test_adaptive_pools(spatial: int) -> None:
    average, maximum = ADAPTIVE_AVERAGE[spatial], ADAPTIVE_MAXIMUM[spatial]
    layers = [pool(size) for pool in (average, maximum) for size in (1, 3, 5, 8, 11)]
    graph = check(Layers(*layers), _map(spatial))
    assert {"mean", "amax", "adaptive_avg_pool", "adaptive_max_pool"} <= set(operations(graph))
    check(average(3), _map(spatial)[0])
    with_places = [maximum(size, return_indices=True) for size in (1, 3)]
    check(lambda x: [item for layer in with_places for item in layer(x)], _map(spatial))


def test_adaptive_size_may_leave_a_dimension() -> None:
    check(nn.AdaptiveAvgPool2d((None, 3)), _map(2))


@dimensions
def test_power_average_pool(spatial: int) -> None:
    check(POWER[spatial](2, 3), _map(spatial))


def test_fractional_pool_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedOpError, match=r"fractional_max_pool2d(.|\n)*rand"):
        imported(nn.FractionalMaxPool2d(2, output_size=3), _map(2))


def test_first_of_equal_maxima() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[..., 2:] = -torch.inf
    check(lambda x: [*F.max_pool2d(x, 2, 2, return_indices=True), *F.max_pool2d(x, 3, 2, 1, return_indices=True)], x)
