"""Plans for products on GPUs: what fits, and the reasons why something does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from whet.backends.tvm.kernels.gpu_plan import (
    SHARED_BYTES,
    THREAD_TILES,
    WARP_TILES,
    Declined,
    GpuPlan,
    Product,
    plan_product,
)
from whet.ir.target import get_target

HALF = Product(1, 256, 128, 64, "float16", "float16", "float32", (64, 0))
BYTES = replace(HALF, activation="uint8", weight="int8", accumulator="int32")
SINGLE = replace(HALF, activation="float32", weight="float32")


def plan(product: Product, architecture: str = "sm_80") -> GpuPlan:
    """A plan; fails where there is none."""
    found = plan_product(get_target(f"cuda:{architecture}"), product)
    assert isinstance(found, GpuPlan), found
    return found


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90"])
@pytest.mark.parametrize("product", [HALF, BYTES])
def test_tensor_cores(product: Product, architecture: str) -> None:
    found = plan(product, architecture)
    assert found.instruction is not None and found.declined == ()
    assert found.vectors == ((8, 8) if product is HALF else (16, 16))


@pytest.mark.parametrize(
    ("product", "architecture", "reason"),
    [
        (SINGLE, "sm_80", "no tensor core multiplies float32 by float32 into float32"),
        (HALF, "sm_70", "sm_70 has no tensor core for float16"),
        (replace(BYTES, inner=12), "sm_80", "sums of 12 products are shorter than an instruction"),
    ],
)
def test_why_not_tensor_cores(product: Product, architecture: str, reason: str) -> None:
    found = plan(product, architecture)
    assert found.instruction is None
    assert found.declined == (Declined("tensor_core", reason),)
    assert found.grouped == (4 if product.activation == "uint8" else 1)


@pytest.mark.parametrize(
    ("product", "reason"),
    [
        (replace(HALF, rows=1), "1 rows are too few for a tile"),
        (replace(HALF, columns=40, groups=4, grouped=True), "40 columns of each group fill no whole tiles"),
        (replace(HALF, columns=4), "4 columns are too few for a tile"),
        (replace(SINGLE, inner=4), "sums of 4 products are too short for shared memory"),
    ],
)
def test_why_no_tiles(product: Product, reason: str) -> None:
    found = plan_product(get_target("cuda:sm_80"), product)
    assert not isinstance(found, GpuPlan)
    assert found[-1] == Declined("thread_tiles", reason)


def test_large_products_get_large_tiles_and_small_ones_many_blocks() -> None:
    large, small = plan(replace(HALF, rows=8192, columns=4096)).tile, plan(replace(HALF, rows=64, columns=64)).tile
    assert (large.rows, large.columns) == (128, 128)
    assert small.rows * small.columns < 64 * 64


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (8, 40), (20, 10), (100, 10), (40, 24)])
def test_every_warp_has_sums(rows: int, columns: int) -> None:
    tile = plan(replace(HALF, rows=rows, columns=columns)).tile
    assert rows > tile.rows - tile.rows // tile.across[0]
    assert columns > tile.columns - tile.columns // tile.across[1]


def test_runs_bound_vectors() -> None:
    assert plan(replace(HALF, runs=(12, 3))).vectors == (4, 1)


@pytest.mark.parametrize("tile", [*WARP_TILES, *THREAD_TILES])
def test_two_tiles_of_each_operand_fit_shared_memory(tile: object) -> None:
    assert isinstance(tile, type(WARP_TILES[0]))
    copies = 2 if tile in WARP_TILES else 1
    assert copies * (tile.rows + tile.columns) * (tile.depth + 16) <= SHARED_BYTES
    assert tile.rows % tile.across[0] == 0 and tile.columns % tile.across[1] == 0
    if tile in WARP_TILES:
        assert tile.rows // tile.across[0] % 16 == 0 and tile.columns // tile.across[1] % 16 == 0
