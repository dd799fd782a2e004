"""Roundings: nearest, GPTQ, AdaRound, and the bias that makes up for them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from whet.errors import PassError
from whet.passes.quantization.adaround import AdaRound
from whet.passes.quantization.bias_correction import corrected_bias
from whet.passes.quantization.gptq import GPTQ
from whet.passes.quantization.rounding import LayerInputs, Nearest, Rounding, output_error, restored, round_nearest

LEARNED: tuple[Rounding, ...] = (GPTQ(), GPTQ(order=False, block=3), AdaRound(steps=100, rate=0.05))
ZERO = torch.zeros((), dtype=torch.int32)


def correlated(groups: int, columns: int, rows: int = 400, seed: int = 0) -> tuple[LayerInputs, Tensor]:
    """Inputs whose columns go together and have a mean, and the rows themselves [groups, rows, columns]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, columns, columns, generator=generator)
    rows_ = torch.randn(groups, rows, columns, generator=generator) @ mix * 0.5 + mix[:, :1].abs()
    gram = rows_.transpose(1, 2) @ rows_ / rows
    return LayerInputs(gram, rows_.mean(1), rows), rows_


def scale_of(weight: Tensor, high: int) -> Tensor:
    return weight.abs().flatten(1).amax(1).div(high).clamp_min(1e-6).reshape(-1, *([1] * (weight.dim() - 1)))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(LEARNED),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([(-7, 7, 0), (-8, 7, 0), (0, 15, 6), (-127, 127, 0)]),
    st.integers(0, 99),
)
def test_learned_roundings_are_never_worse_than_nearest(
    rounding: Rounding, groups: int, outputs: int, columns: int, levels: tuple[int, int, int], seed: int
) -> None:
    low, high, zero = levels
    inputs, _ = correlated(groups, columns, 50, seed)
    weight = torch.randn(groups * outputs, columns, generator=torch.Generator().manual_seed(seed))
    scale, zero_point = scale_of(weight, (high - low) // 2), torch.tensor(zero, dtype=torch.int32)
    integers = rounding.round(weight, scale, zero_point, low, high, inputs)
    assert integers.shape == weight.shape and integers.dtype is torch.int32
    assert int(integers.min()) >= low and int(integers.max()) <= high
    nearest = restored(round_nearest(weight, scale, zero_point, low, high), scale, zero_point)
    found = output_error(weight, restored(integers, scale, zero_point), inputs)
    assert found <= output_error(weight, nearest, inputs) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("rounding", LEARNED, ids=repr)
def test_learned_roundings_lower_the_true_error_of_outputs(rounding: Rounding) -> None:
    inputs, rows = correlated(1, 48)
    weight = torch.randn(24, 48, generator=torch.Generator().manual_seed(3))
    scale = scale_of(weight, 7)
    outputs = rows[0] @ weight.T

    def error(integers: Tensor) -> float:
        return float((rows[0] @ restored(integers, scale, ZERO).float().T - outputs).square().sum())

    nearest = error(round_nearest(weight, scale, ZERO, -7, 7))
    assert error(rounding.round(weight, scale, ZERO, -7, 7, inputs)) < 0.6 * nearest


@pytest.mark.parametrize("rounding", LEARNED, ids=repr)
def test_groups_of_a_convolution_are_layers_of_their_own(rounding: Rounding) -> None:
    inputs, _ = correlated(3, 8)
    weight = torch.randn(6, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    scale = scale_of(weight, 7)
    together = rounding.round(weight, scale, ZERO, -7, 7, inputs)
    for group in range(3):
        rows = slice(2 * group, 2 * group + 2)
        alone = LayerInputs(inputs.gram[group : group + 1], inputs.mean[group : group + 1], inputs.rows)
        error, other = (
            output_error(weight[rows], restored(integers, scale[rows], ZERO), alone)
            for integers in (together[rows], rounding.round(weight[rows], scale[rows], ZERO, -7, 7, alone))
        )
        assert error == pytest.approx(other, rel=1e-3)


def test_uncorrelated_inputs_leave_nothing_to_learn() -> None:
    """With H = I rounding to nearest is optimal."""
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    inputs = LayerInputs(torch.eye(6)[None], torch.zeros(1, 6), 1)
    scale = scale_of(weight, 7)
    nearest = Nearest().round(weight, scale, ZERO, -7, 7)
    for rounding in LEARNED:
        assert torch.equal(rounding.round(weight, scale, ZERO, -7, 7, inputs), nearest)


@pytest.mark.parametrize("rounding", LEARNED, ids=repr)
def test_scales_of_groups_of_columns(rounding: Rounding) -> None:
    inputs, _ = correlated(1, 16)
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(2)) * torch.logspace(-1, 1, 16)
    scale = scale_of(weight.reshape(-1, 4), 7).reshape(8, 4).repeat_interleave(4, dim=1)
    integers = rounding.round(weight, scale, ZERO, -7, 7, inputs)
    nearest = restored(round_nearest(weight, scale, ZERO, -7, 7), scale, ZERO)
    assert output_error(weight, restored(integers, scale, ZERO), inputs) < output_error(weight, nearest, inputs)


@pytest.mark.parametrize("rounding", LEARNED, ids=repr)
def test_columns_that_read_zeros(rounding: Rounding) -> None:
    weight, scale = torch.randn(3, 4), torch.full((3, 1), 0.1)
    inputs = LayerInputs(torch.zeros(1, 4, 4), torch.zeros(1, 4), 9)
    integers = rounding.round(weight, scale, ZERO, -7, 7, inputs)
    assert int(integers.abs().max()) <= 7


@pytest.mark.parametrize("rounding", [Nearest(), *LEARNED], ids=repr)
@pytest.mark.parametrize("zero", [0, 5])
def test_what_is_pruned_stays_pruned(rounding: Rounding, zero: int) -> None:
    inputs, _ = correlated(1, 24)
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(4))
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(5)) < 0.5] = 0
    point = torch.full((16, 1), zero, dtype=torch.int32)
    integers = rounding.round(weight, scale_of(weight, 7), point, -7 + zero, 7 + zero, inputs)
    assert bool((integers[weight == 0] == zero).all()) and int((integers != zero).sum()) > 100


def test_inputs_that_are_missing_or_do_not_fit() -> None:
    weight, scale = torch.randn(4, 4), torch.ones(4, 1)
    wrong, _ = correlated(1, 5)
    for rounding in (GPTQ(), AdaRound()):
        with pytest.raises(PassError, match="was given no inputs"):
            rounding.round(weight, scale, ZERO, -7, 7, None)
        with pytest.raises(PassError, match=r"5 columns do not fit a weight \[4, 4\]"):
            rounding.round(weight, scale, ZERO, -7, 7, wrong)


@pytest.mark.parametrize(
    "make", [lambda: GPTQ(damping=0), lambda: GPTQ(block=0), lambda: AdaRound(steps=0), lambda: AdaRound(warm=1.0)]
)
def test_options_out_of_range(make: object) -> None:
    with pytest.raises(PassError, match="takes"):
        make()  # type: ignore[operator]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_corrected_biases_restore_the_mean_output(
    groups: int, outputs: int, columns: int, has_bias: bool, seed: int
) -> None:
    inputs, rows = correlated(groups, columns, 60, seed)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups * outputs, columns, generator=generator)
    other = weight + 0.1 * torch.randn(weight.shape, generator=generator)
    bias = torch.randn(groups * outputs, generator=generator) if has_bias else None

    def mean(w: Tensor, b: Tensor | None) -> Tensor:
        out = (rows.double() @ w.double().reshape(groups, outputs, columns).transpose(1, 2)).mean(1).flatten()
        return out if b is None else out + b

    torch.testing.assert_close(
        mean(other, corrected_bias(bias, weight, other, inputs)), mean(weight, bias), atol=1e-5, rtol=1e-5
    )
