"""How contractions are laid out for a matrix unit: which registers a tile takes, how deep a step is, what is chosen."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.backends.tvm.intrinsics.instructions import (
    MATRIX_INSTRUCTIONS,
    MATRIX_ROW_BYTES,
    MATRIX_ROWS,
    MatrixTile,
    instruction_of,
    matrix_instruction,
)
from whet.backends.tvm.intrinsics.matrix_unit import fits_registers, matrix_code
from whet.backends.tvm.kernels.dot import plan_dot_conv, plan_dot_linear, plan_dot_matmul
from whet.backends.tvm.kernels.expressions import element_bytes
from whet.backends.tvm.kernels.matrix_tiles import depth_of
from whet.backends.tvm.kernels.windows import window
from whet.ir.target import CATALOGUE

TARGET = CATALOGUE["sapphire-rapids"]
INSTRUCTIONS = {instruction.name: instruction for instruction in MATRIX_INSTRUCTIONS}
_REGISTERS = 8


@pytest.mark.parametrize("name", INSTRUCTIONS)
@given(channels=st.integers(1, 5000))
def test_steps_hold_all_channels_and_fit_a_row(name: str, channels: int) -> None:
    instruction = INSTRUCTIONS[name]
    depth, grown = depth_of(channels, instruction)
    size = element_bytes(instruction.activation)
    assert depth % instruction.group == 0
    assert 0 < depth * size <= MATRIX_ROW_BYTES
    assert grown % depth == 0
    fewest = -(-channels * size // MATRIX_ROW_BYTES)
    # never twice the steps that whole rows would take, and padding only up to a vector of 16 bytes for each
    assert grown // depth <= 2 * fewest
    assert channels <= grown < channels + fewest * 16 + 16


def test_no_two_operands_share_a_register() -> None:
    """Every product reads registers that were loaded in its step, and adds to sums that nothing else writes."""
    for down, across in itertools.product(range(1, 7), range(1, 5)):
        tile = MatrixTile(MATRIX_ROWS, 64, down, across)
        if not fits_registers(tile):
            continue
        name = f"whet.tdpbusd.uint8.{tile}"
        instruction = instruction_of(name)
        assert instruction.intrinsic == name
        step = re.search(r"_step\(.*?\n\}", matrix_code(instruction), re.DOTALL)
        assert step is not None
        loaded: dict[int, str] = {}
        products = set()
        for line in step.group().splitlines():
            load = re.search(r"tileloadd64\(i8 (\d+), ptr %(\w+)", line)
            if load:
                loaded[int(load.group(1))] = load.group(2)
            product = re.search(r"tdpbusd\(i8 (\d+), i8 (\d+), i8 (\d+)\)", line)
            if product:
                sums, left, right = (int(item) for item in product.groups())
                assert sums not in loaded
                assert max(sums, left, right) < _REGISTERS
                products.add((sums, loaded[left], loaded[right]))
        wanted = {(r * across + c, f"a{r}", f"b{c}") for r in range(down) for c in range(across)}
        assert products == wanted


def test_a_step_prefetches_every_line_of_its_weights() -> None:
    tile = MatrixTile(MATRIX_ROWS, 64, 2, 2, ahead=8192)
    assert MatrixTile.parse(str(tile)) == tile
    instruction = instruction_of(f"whet.tdpbusd.uint8.{tile}")
    assert instruction.matrix == tile
    code = matrix_code(instruction)
    assert code.count("call void @llvm.prefetch") == 2 * 64 // instruction.group
    assert "call void @llvm.prefetch" not in matrix_code(instruction_of("whet.tdpbusd.uint8.2x2x16x64"))


@pytest.mark.parametrize(("down", "across"), [(4, 2), (3, 3), (8, 1), (2, 4)])
def test_tiles_that_have_no_registers_left(down: int, across: int) -> None:
    assert not fits_registers(MatrixTile(16, 64, down, across))


def test_the_taps_of_a_line_become_channels_where_a_tap_has_few() -> None:
    stem = plan_dot_conv(TARGET, (1, 224, 224, 3), 64, window((7, 7), (2, 2), ((3, 3), (3, 3))))
    assert stem.unrolled
    assert stem.channels == 32
    deep = plan_dot_conv(TARGET, (1, 56, 56, 64), 64, window((3, 3), padding=((1, 1), (1, 1))))
    assert not deep.unrolled
    assert deep.channels == 64


def test_a_column_is_a_line() -> None:
    column = plan_dot_conv(TARGET, (1, 128, 1, 64), 64, window((5, 1), padding=((2, 2), (0, 0))))
    line = plan_dot_conv(TARGET, (1, 128, 64), 64, window((5,), padding=((2, 2),)))
    assert column == line


def test_what_a_matrix_unit_is_not_for() -> None:
    """Few rows, few channels, groups, unknown rows and other targets: dot instructions."""
    assert plan_dot_linear(TARGET, (1, 256), 64).instruction.matrix is None
    assert plan_dot_conv(TARGET, (1, 16, 16, 64), 64, window((3, 3)), groups=4).instruction.matrix is None
    assert plan_dot_matmul(TARGET, (2,), 64, 64, 8, "int8").instruction.matrix is None
    assert plan_dot_linear(CATALOGUE["avx512-vnni"], (128, 256), 64).instruction.matrix is None
    assert plan_dot_linear(TARGET, (128, 256), 64).instruction.matrix is not None


def test_instruction_by_activation() -> None:
    found = {source: matrix_instruction(TARGET, source) for source in ("uint8", "int8", "int16", "bfloat16", "float32")}
    assert {source: item.name for source, item in found.items() if item} == {
        "uint8": "tdpbusd",
        "int8": "tdpbssd",
        "int16": "tdpbf16ps",
        "bfloat16": "tdpbf16ps",
    }
    assert matrix_instruction(CATALOGUE["avx512-vnni"], "uint8") is None
