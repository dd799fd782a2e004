"""Winograd's algorithm computes the convolution: matrices, padding, parts of tiles, several pictures."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from tvm import te

from tests.backends.tvm.kernel_run import HOST, error, last, run
from whet.backends.tvm.kernels.windows import window
from whet.backends.tvm.kernels.winograd import (
    TRANSFORMS,
    Transform,
    fits_winograd,
    pack_winograd_weight,
    plan_winograd,
    winograd,
)

BOUNDS = {"winograd-2x2": 1e-6, "winograd-4x4": 1e-5}
"""A tenth of what T1 allows a whole model."""
NAMES = sorted(TRANSFORMS)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=list(TRANSFORMS))
def test_the_matrices_are_an_exact_convolution_in_one_dimension(transform: Transform) -> None:
    torch.manual_seed(0)
    signal, taps = torch.randn(transform.size, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    bt, g, at = (
        torch.tensor(matrix, dtype=torch.float64) for matrix in (transform.input, transform.filter, transform.output)
    )
    expected = F.conv1d(signal[None, None], taps[None, None])[0, 0]
    torch.testing.assert_close(at @ ((g @ taps) * (bt @ signal)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize(
    ("shape", "outputs", "padding"),
    [
        ((1, 32, 14, 14), 64, ((1, 1), (1, 1))),
        ((2, 20, 7, 9), 35, ((1, 1), (1, 1))),
        ((1, 3, 5, 6), 16, ((0, 0), (0, 0))),
        ((1, 16, 8, 8), 17, ((2, 0), (0, 1))),
    ],
    ids=["whole", "parts of tiles", "valid", "uneven"],
)
def test_it_is_the_convolution(
    algorithm: str, shape: tuple[int, ...], outputs: int, padding: tuple[tuple[int, int], ...]
) -> None:  # numerics: R3
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(outputs, shape[1], 3, 3)
    geometry = window((3, 3), padding=padding)
    source = last(x)
    plan = plan_winograd(HOST, source.shape, outputs, geometry, algorithm)
    packed = pack_winograd_weight(weight, plan)
    data = te.placeholder(source.shape, "float32", name="x")
    factor = te.placeholder(tuple(packed.shape), "float32", name="w")
    y = winograd(data, factor, geometry=geometry, out_channels=outputs, plan=plan)
    (top, bottom), (left, right) = padding
    expected = last(F.conv2d(F.pad(x.double(), (left, right, top, bottom)), weight.double()))
    done = run([data, factor, y], [source, packed], expected.shape)
    assert done.rule == "contraction"
    assert error(done.output, expected) <= BOUNDS[algorithm]


def test_other_convolutions_do_not_fit() -> None:
    shape = (1, 8, 8, 16)
    fits = window((3, 3), padding=((1, 1), (1, 1)))
    assert fits_winograd(fits, 1, shape, "float32")
    assert not fits_winograd(fits, 2, shape, "float32")
    assert not fits_winograd(fits, 1, shape, "int8")
    assert not fits_winograd(window((3, 3), (2, 2)), 1, shape, "float32")
    assert not fits_winograd(window((5, 5)), 1, shape, "float32")
    assert not fits_winograd(window((3, 3), dilation=(2, 2)), 1, shape, "float32")
    assert not fits_winograd(fits, 1, (te.var("n"), 8, 8, 16), "float32")
