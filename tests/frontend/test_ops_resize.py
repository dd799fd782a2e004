"""Interpolation in every mode, and sampling at a grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.frontend.operators import check, imported, operations, randn
from whet.errors import UnsupportedOpError

MODES = [
    ("nearest", 1), ("nearest", 2), ("nearest", 3),
    ("nearest-exact", 1), ("nearest-exact", 2), ("nearest-exact", 3),
    ("linear", 1), ("bilinear", 2), ("trilinear", 3), ("bicubic", 2),
]  # fmt: skip
WAYS = (
    {"size": 11},
    {"size": 4},
    {"size": 1},
    {"scale_factor": 2},
    {"scale_factor": 1.7},
    {"scale_factor": 0.6},
    {"scale_factor": 1.7, "recompute_scale_factor": True},
)


@pytest.mark.parametrize(("mode", "spatial"), MODES)
@pytest.mark.parametrize("align", [False, True])
def test_interpolate(mode: str, spatial: int, align: bool) -> None:
    align_corners = None if "nearest" in mode else align
    if align_corners is None and align:
        return

    def resize(x: Tensor) -> list[Tensor]:
        return [F.interpolate(x, mode=mode, align_corners=align_corners, **way) for way in WAYS]  # type: ignore[arg-type]

    graph = check(resize, randn(2, 3, *[7] * spatial))
    assert operations(graph) == ["resize"] * len(WAYS)


def test_a_factor_that_is_the_ratio_of_the_sizes_is_not_kept() -> None:
    graph = check(lambda x: [F.interpolate(x, scale_factor=3.0), F.interpolate(x, scale_factor=1.6)], randn(1, 2, 7, 7))
    kept = [operation.attributes["scales"] for operation in graph.operations]
    assert kept == [None, (1.6, 1.6)]


@pytest.mark.parametrize("border", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sample(mode: str, border: str) -> None:
    def sample(x: Tensor, grid: Tensor) -> list[Tensor]:
        return [F.grid_sample(x, grid, mode, border, align_corners=align) for align in (False, True)]

    assert operations(check(sample, randn(2, 3, 5, 6), randn(2, 4, 7, 2))) == ["grid_sample"] * 2


def test_grids_of_volumes_and_of_affine_maps() -> None:
    check(lambda x, grid: F.grid_sample(x, grid, align_corners=False), randn(2, 3, 4, 5, 6), randn(2, 4, 7, 3, 3))
    check(
        lambda x, theta: F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=True), align_corners=True),
        randn(2, 3, 5, 6), randn(2, 2, 3),
    )  # fmt: skip


def test_antialiasing_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedOpError, match=r"_upsample_bilinear2d_aa.*antialias=False"):
        imported(lambda x: F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True), randn(1, 1, 7, 7))


def test_positions_outside_of_the_grid_are_torchs() -> None:
    grid = torch.tensor([-3.0, -1.0, -0.99, 0.0, 0.5, 1.0, 2.5])
    pairs = torch.cartesian_prod(grid, grid).reshape(1, 7, 7, 2)
    for border in ("zeros", "border", "reflection"):
        check(lambda x, g, b=border: F.grid_sample(x, g, padding_mode=b, align_corners=False), randn(1, 2, 5, 6), pairs)
