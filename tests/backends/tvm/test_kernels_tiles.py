from __future__ import annotations

import math

import pytest
from tvm import tirx

from whet.backends.tvm.kernels.cpu import lanes
from whet.backends.tvm.kernels.tiles import contraction_tile
from whet.ir.target import CATALOGUE, Target

CPUS = [target for target in CATALOGUE.values() if target.kind == "cpu"]


@pytest.mark.parametrize("target", CPUS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [((56, 56), 64), ((7, 7), 512), ((1,), 1000), ((128,), 384), ((3,), 5)])
def test_accumulators_fit_the_registers(target: Target, rows: tuple[int, ...], columns: int) -> None:
    tile = contraction_tile(target, rows, columns, 576)
    vectors = -(-tile.block // lanes(target))
    assert tile.block % lanes(target) == 0
    assert math.prod(tile.rows) * vectors + vectors < target.registers


def test_rows_are_not_wasted() -> None:
    assert contraction_tile(CATALOGUE["avx512"], [49], 512, 512).rows[0] in (5, 7, 10, 25)
    assert contraction_tile(CATALOGUE["avx512"], [56, 56], 64, 576).rows == (1, 14)


def test_one_row_takes_wide_blocks() -> None:
    assert contraction_tile(CATALOGUE["avx512"], [1], 1024, 1024).block == 64


def test_rows_at_a_power_of_two_do_not_share_a_cache_set() -> None:
    target = CATALOGUE["avx512"]
    near = contraction_tile(target, [14, 14], 1024, 9216, row_bytes=1000 * 4)
    far = contraction_tile(target, [14, 14], 1024, 9216, row_bytes=1024 * 4)
    assert math.prod(near.rows) > 8 >= math.prod(far.rows)


def test_blocks_of_grouped_weights_divide_the_columns() -> None:
    for columns in (8, 20, 24, 48, 50):
        tile = contraction_tile(CATALOGUE["avx2"], [14, 14], columns, 72, exact_block=True)
        assert columns % tile.block == 0


def test_symbolic_rows_get_a_fixed_tile() -> None:
    rows = tirx.Var("rows", "int64")
    assert contraction_tile(CATALOGUE["avx512"], [rows], 384, 384).rows == (8,)


@pytest.mark.parametrize("name", ["arm", "cortex-a72", "cortex-a76", "neoverse-n1"])
@pytest.mark.parametrize("rows", [[256], [28, 28], [784]])
def test_operands_have_registers_of_their_own(name: str, rows: list[int]) -> None:
    target = CATALOGUE[name]
    tile = contraction_tile(target, rows, 64, 576)
    vectors = tile.block // lanes(target)
    assert math.prod(tile.rows) * vectors + vectors + 3 <= target.registers


def test_spreading_activations_makes_tiles_wider() -> None:
    target = CATALOGUE["cortex-a72"]
    assert contraction_tile(target, [256], 256, 128, spread=0.5).block > contraction_tile(target, [256], 256, 128).block
