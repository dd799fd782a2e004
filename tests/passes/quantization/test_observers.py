"""Observers and parameters: which range gets codes, and what the codes cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.errors import PassError
from whet.ir.types import DType
from whet.passes.quantization.formats import Format, weight_format
from whet.passes.quantization.observers import OBSERVERS, Histogram, Observer, find_observer
from whet.passes.quantization.parameters import affine, group_scales, quantize_weight, weight_parameters

UNSIGNED, SIGNED = Format(DType.U8), Format(DType.I8, symmetric=True)


def normal(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def observed(name: str, *batches: torch.Tensor) -> Observer:
    observer = find_observer(name)()
    for batch in batches:
        observer.update(batch)
    return observer


def squared_error(x: torch.Tensor, observer: Observer, form: Format) -> float:
    found = observer.range(form)
    parameters = affine(found.minimum, found.maximum, form)
    low, high = form.codes
    codes = (torch.round(x / parameters.scale) + parameters.zero_point).clamp(low, high)
    return float((((codes - parameters.zero_point) * parameters.scale) - x).square().mean())


@pytest.mark.parametrize("name", OBSERVERS)
@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 9), form=st.sampled_from([UNSIGNED, SIGNED]))
def test_the_range_lies_within_what_was_seen(name: str, scale: float, seed: int, form: Format) -> None:
    batches = [normal(300, seed) * scale, normal(200, seed + 10) * scale * 3]
    found = observed(name, *batches).range(form)
    seen = torch.cat(batches)
    assert seen.min().item() <= found.minimum < 0 < found.maximum <= seen.max().item()


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_value_that_is_always_zero(name: str) -> None:
    found = observed(name, torch.zeros(5), torch.zeros(3)).range(UNSIGNED)
    assert (found.minimum, found.maximum) == (0.0, 0.0)
    assert affine(0.0, 0.0, UNSIGNED).scale.item() > 0


@pytest.mark.parametrize("name", ["percentile", "mse", "entropy", "moving_average"])
def test_an_outlier_does_not_take_the_codes_of_all_others(name: str) -> None:
    x = normal(100_000)
    x[7] = 300.0
    batches = x.split(10_000)
    assert observed("minmax", *batches).range(SIGNED).maximum == 300.0
    assert observed(name, *batches).range(SIGNED).maximum < 200.0
    rest = x[x < 300]
    assert (
        squared_error(rest, observed(name, *batches), SIGNED) < squared_error(rest, observed("minmax", x), SIGNED) / 2
    )


@pytest.mark.parametrize("form", [Format(DType.U8, 4), Format(DType.I8, 4, symmetric=True), UNSIGNED])
def test_mse_is_at_least_as_good_as_the_whole_range(form: Format) -> None:
    x = normal(50_000).relu() ** 2
    assert squared_error(x, observed("mse", x), form) <= squared_error(x, observed("minmax", x), form) * 1.001
    if form.bits == 4:
        assert squared_error(x, observed("mse", x), form) < squared_error(x, observed("minmax", x), form) * 0.8


def test_percentiles_are_those_of_the_data() -> None:
    x = torch.linspace(-10, 30, 100_001)
    found = observed("percentile", x).range(UNSIGNED)
    quantiles = torch.tensor([0.0001, 0.9999], dtype=torch.float64)
    low, high = torch.quantile(x.double(), quantiles).tolist()
    assert found.minimum == pytest.approx(low, abs=0.03) and found.maximum == pytest.approx(high, abs=0.03)


def test_a_moving_average_follows_the_extremes() -> None:
    observer = observed("moving_average", torch.tensor([-1.0, 1.0]), torch.tensor([-3.0, 11.0]))
    found = observer.range(UNSIGNED)
    assert (found.minimum, found.maximum) == (pytest.approx(-1.2), pytest.approx(2.0))
    assert (observer.seen.minimum, observer.seen.maximum) == (-3.0, 11.0)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40), st.floats(1, 1000))
def test_a_histogram_loses_nothing_as_it_widens(numbers: list[float], factor: float) -> None:
    histogram = Histogram()
    batches = [torch.tensor(numbers), torch.tensor(numbers) * factor]
    for batch in batches:
        histogram.update(batch)
    assert histogram.complete.sum() == sum(map(len, batches))
    elements = torch.cat(batches)
    if histogram.width:
        mean = (histogram.complete * histogram.centers).sum() / len(elements)
        assert abs(mean - elements.double().mean()) <= histogram.width


def test_an_unknown_observer() -> None:
    with pytest.raises(PassError, match="no observer 'best'; known are minmax"):
        find_observer("best")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("clip", ["minmax", "mse"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_of_few_bits(bits: int, clip: str, per_channel: bool) -> None:  # numerics: Q1
    weight = normal(6 * 40).reshape(6, 40)
    weight[2] = 0
    parameters = weight_parameters(weight, bits, per_channel=per_channel, clip=clip)
    assert parameters.dtype is (DType.I4 if bits <= 4 else DType.I8)
    assert parameters.scale.shape == ((6,) if per_channel else ())
    codes = quantize_weight(weight, parameters)
    high = 2 ** (bits - 1) - 1
    assert codes.abs().max() == high and not codes[2].any()
    step = parameters.scale.reshape(-1, 1) if per_channel else parameters.scale
    error = (codes * step - weight).square().sum()
    plain = weight_parameters(weight, bits, per_channel=per_channel)
    step = plain.scale.reshape(-1, 1) if per_channel else plain.scale
    assert error <= (quantize_weight(weight, plain) * step - weight).square().sum() * (1 + 1e-6)


def test_groups_have_scales_of_their_own() -> None:
    weight = normal(4 * 64).reshape(4, 64)
    scales = group_scales(weight, 32, 4)
    assert scales.shape == (4, 2)
    assert torch.equal(scales[1, 1], weight_parameters(weight[1:2, 32:], 4).scale[0])


def test_formats() -> None:
    assert Format(DType.U8, 4).codes == (0, 15) and Format(DType.I8).codes == (-128, 127)
    assert weight_format(4).codes == (-7, 7) and weight_format(8).codes == (-127, 127)
    assert Format(DType.U8, symmetric=True).middle == 128
    assert int(affine(-1.0, 3.0, Format(DType.U8, symmetric=True)).zero_point) == 128
    for wrong in (lambda: Format(DType.I4, 5), lambda: Format(DType.I32), lambda: Format(DType.I8, 1)):
        with pytest.raises(PassError):
            wrong()
