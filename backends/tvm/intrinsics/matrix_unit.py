"""Tensor intrinsics of a matrix unit (Intel AMX): sums stay in its registers over a whole reduction.

Three blocks of a tile become calls of functions in LLVM's text: zeroing the sums, one step of the reduction, and
writing the sums to memory. The buffer between them has no memory; the registers, which the text names, stand for it.
Which rows and columns they have is a configuration of the thread, loaded before and given up after a run of tiles.

What the blocks of a step compute is `C[down, rows, columns] += A[down, rows, depth] · B[depth / g, columns, g]`, where
the first two dimensions may be one.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import Final

from tvm import s_tir
from tvm.script import from_source

from whet.backends.tvm.intrinsics.dot_product import product_term
from whet.backends.tvm.intrinsics.instructions import MATRIX_ROW_BYTES, DotInstruction, MatrixTile
from whet.backends.tvm.kernels.expressions import element_bytes
from whet.backends.tvm.prefetches import HINTS

CONFIGURE: Final = "configure"
RELEASE: Final = "release"
"""The functions to call before and after a run of tiles, on the thread that computes them (`matrix_function`)."""

_BFLOAT: Final = "bfloat16"
_REGISTERS: Final = 8
_CONFIGURATION_BYTES: Final = 64
_PALETTE: Final = 1
# Offsets in a configuration: 16-bit widths in bytes, 8-bit rows.
_WIDTHS: Final = 16
_ROWS: Final = 48
_SUM_BYTES: Final = 4


@dataclass(frozen=True)
class MatrixIntrinsics:
    """Names to tensorize the three blocks of a tile with."""

    zero: str
    step: str
    store: str


@dataclass(frozen=True)
class _Registers:
    """Which register holds what: sums first, then the side with fewer registers, then one or two for the other side."""

    tile: MatrixTile

    @property
    def streams_activations(self) -> bool:
        return self.tile.across <= self.tile.down

    def sums(self, down: int, across: int) -> int:
        return down * self.tile.across + across

    def activations(self, down: int) -> int:
        return self._streamed(down) if self.streams_activations else self._held(down)

    def weights(self, across: int) -> int:
        return self._held(across) if self.streams_activations else self._streamed(across)

    def _held(self, index: int) -> int:
        return self.tile.down * self.tile.across + index

    def _streamed(self, index: int) -> int:
        first = self._held(min(self.tile.down, self.tile.across))
        return first + index % max(1, min(2, _REGISTERS - first))


def fits_registers(tile: MatrixTile) -> bool:
    """Whether the unit has registers for the sums, one side, and at least one of the other side."""
    return tile.down * tile.across + min(tile.down, tile.across) < _REGISTERS


def matrix_function(instruction: DotInstruction, part: str) -> str:
    """The name of one of the functions in `matrix_code`; kernels share a module, so it says which tile it is for."""
    return f"whet_{instruction.name}_{instruction.activation}_{_tile(instruction)}_{part}"


def matrix_code(instruction: DotInstruction) -> str:
    """LLVM's text of the functions that blocks of the instruction call."""
    tile = _tile(instruction)
    configuration = ", ".join(f"i8 {byte}" for byte in _configuration(instruction, tile))
    return _FUNCTIONS.format(
        size=_CONFIGURATION_BYTES,
        configuration=configuration,
        shape=matrix_function(instruction, "shape"),
        **{part: matrix_function(instruction, part) for part in (CONFIGURE, RELEASE, "zero", "step", "store")},
        multiply=instruction.llvm,
        zeros="\n".join(f"  call void @llvm.x86.tilezero(i8 {index})" for index in range(tile.down * tile.across)),
        steps="\n".join(_step(instruction, tile)),
        stores="\n".join(_store(tile)),
    )


_FUNCTIONS: Final = """
@{shape} = linkonce_odr hidden constant [{size} x i8] [{configuration}], align 64
declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilerelease()
declare void @llvm.x86.tilezero(i8)
declare void @llvm.x86.tileloadd64(i8, ptr, i64)
declare void @llvm.x86.tilestored64(i8, ptr, i64)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare void @{multiply}(i8, i8, i8)
define linkonce_odr hidden i32 @{configure}() alwaysinline nounwind {{
  call void @llvm.x86.ldtilecfg(ptr @{shape})
  ret i32 0
}}
define linkonce_odr hidden i32 @{release}() alwaysinline nounwind {{
  call void @llvm.x86.tilerelease()
  ret i32 0
}}
define linkonce_odr hidden i32 @{zero}() alwaysinline nounwind {{
{zeros}
  ret i32 0
}}
define linkonce_odr hidden i32 @{step}(ptr %a, i64 %row, i64 %next, ptr %b, i64 %group) alwaysinline nounwind {{
{steps}
  ret i32 0
}}
define linkonce_odr hidden i32 @{store}(ptr %c, i64 %row, i64 %next) alwaysinline nounwind {{
{stores}
  ret i32 0
}}
"""


def _tile(instruction: DotInstruction) -> MatrixTile:
    if instruction.matrix is None:
        raise ValueError(f"{instruction.name}: no kernel has chosen a tile")
    return instruction.matrix


def _configuration(instruction: DotInstruction, tile: MatrixTile) -> bytes:
    """What ldtilecfg reads: the palette, then bytes a row and rows of every register."""
    shape = bytearray(_CONFIGURATION_BYTES)
    shape[0] = _PALETTE
    registers, width = _Registers(tile), tile.depth * element_bytes(instruction.activation)
    wanted = {registers.sums(r, c): (tile.rows, MATRIX_ROW_BYTES) for r in range(tile.down) for c in range(tile.across)}
    wanted |= {registers.activations(r): (tile.rows, width) for r in range(tile.down)}
    wanted |= {registers.weights(c): (tile.depth // instruction.group, MATRIX_ROW_BYTES) for c in range(tile.across)}
    for register, (rows, bytes_of_row) in wanted.items():
        struct.pack_into("<H", shape, _WIDTHS + 2 * register, bytes_of_row)
        shape[_ROWS + register] = rows
    return bytes(shape)


def _step(instruction: DotInstruction, tile: MatrixTile) -> list[str]:
    """Load the side that is held, then each register of the other one before its products."""
    registers, lines = _Registers(tile), list[str]()

    def load_activations(row: int) -> None:
        lines.extend(
            (
                f"  %to_a{row} = mul i64 %next, {row}",
                f"  %a{row} = getelementptr i8, ptr %a, i64 %to_a{row}",
                f"  call void @llvm.x86.tileloadd64(i8 {registers.activations(row)}, ptr %a{row}, i64 %row)",
            )
        )

    def load_weights(column: int) -> None:
        lines.extend(
            (
                f"  %b{column} = getelementptr i8, ptr %b, i64 {column * MATRIX_ROW_BYTES}",
                f"  call void @llvm.x86.tileloadd64(i8 {registers.weights(column)}, ptr %b{column}, i64 %group)",
            )
        )
        for row in range(tile.depth // instruction.group if tile.ahead else 0):
            place = f"{column}_{row}"
            lines.extend(
                (
                    f"  %line{place} = mul i64 %group, {row}",
                    f"  %later{place} = add i64 %line{place}, {tile.ahead}",
                    f"  %p{place} = getelementptr i8, ptr %b{column}, i64 %later{place}",
                    f"  call void @llvm.prefetch.p0(ptr %p{place}, {', '.join(f'i32 {hint}' for hint in HINTS)})",
                )
            )

    def multiply(row: int, column: int) -> None:
        operands = registers.sums(row, column), registers.activations(row), registers.weights(column)
        lines.append(f"  call void @{instruction.llvm}({', '.join(f'i8 {operand}' for operand in operands)})")

    if registers.streams_activations:
        for column in range(tile.across):
            load_weights(column)
        for row in range(tile.down):
            load_activations(row)
            for column in range(tile.across):
                multiply(row, column)
        return lines
    for row in range(tile.down):
        load_activations(row)
    for column in range(tile.across):
        load_weights(column)
        for row in range(tile.down):
            multiply(row, column)
    return lines


def _store(tile: MatrixTile) -> list[str]:
    registers, lines = _Registers(tile), list[str]()
    for row in range(tile.down):
        lines.append(f"  %to{row} = mul i64 %next, {row}")
        for column in range(tile.across):
            lines += [
                f"  %at{row}_{column} = add i64 %to{row}, {column * MATRIX_ROW_BYTES}",
                f"  %c{row}_{column} = getelementptr i8, ptr %c, i64 %at{row}_{column}",
                f"  call void @llvm.x86.tilestored64(i8 {registers.sums(row, column)}, ptr %c{row}_{column}, i64 %row)",
            ]
    return lines


@functools.cache
def register_matrix(instruction: DotInstruction, planes: bool, stored: str) -> MatrixIntrinsics:
    """Make the blocks of a tile known to TVM.

    Args:
        instruction: with the tile that a kernel has chosen.
        planes: whether the registers of a tile's activations are rows of different planes (an axis of its own), or
            follow each other.
        stored: scope of the buffer that the sums are written to.
    """
    fields = _fields(instruction, _tile(instruction), planes, stored)
    names = MatrixIntrinsics(
        *(f"{instruction.intrinsic}.{planes}.{stored}.{part}" for part in ("zero", "step", "store"))
    )
    for name, head, description, call in (
        (names.zero, _ZERO_HEAD, _ZERO, _ZERO_CALL),
        (names.step, _STEP_HEAD, _STEP, _STEP_CALL),
        (names.store, _STORE_HEAD, _STORE, _STORE_CALL),
    ):
        described, implemented = (from_source((head + body).format(**fields)) for body in (description, call))
        s_tir.TensorIntrin.register(name, described, implemented, override=True)
    return names


def _fields(instruction: DotInstruction, tile: MatrixTile, planes: bool, stored: str) -> dict[str, object]:
    """What the templates below are filled with: with planes a row has two indices."""
    rows = (tile.down, tile.rows) if planes else (tile.down * tile.rows,)
    variables, strides = ("r", "s")[: len(rows)], ("outer", "row")[-len(rows) :]
    columns, group = tile.across * instruction.columns, instruction.group
    bound = [f"v{variable}" for variable in variables]
    size = element_bytes(instruction.activation)
    following = "{0}_outer" if planes else f"{{0}}_row * {tile.rows}"
    return {
        "rows": ", ".join(map(str, rows)),
        "row_count": "".join(f"{row}, " for row in rows),
        "row_variables": "".join(f"{variable}, " for variable in variables),
        "bound_rows": "".join(f"{name}, " for name in bound),
        "row_kinds": "S" * len(rows),
        "row_region": "".join(f"0:{row}, " for row in rows),
        "a_strides": "".join(f"a_{name}, " for name in strides),
        "d_strides": "".join(f"d_{name}, " for name in strides),
        "a_names": "\n".join(f"    a_{name} = T.int32()" for name in strides),
        "d_names": "\n".join(f"    d_{name} = T.int32()" for name in strides),
        "a_bytes": size,
        # TVM's legalization of bf16 takes the words of an access for arithmetic. Arguments have no other place to be.
        "a_pointer": f"T.handle_add_byte_offset(A.data, A.elem_offset * {size})"
        if instruction.activation == _BFLOAT
        else 'A.access_ptr("r")',
        "a_next": following.format("a"),
        "d_next": following.format("d"),
        "sum_bytes": _SUM_BYTES,
        "columns": columns,
        "group": group,
        "groups": tile.depth // group,
        "depth": tile.depth,
        "activation": instruction.activation,
        "weight": instruction.weight,
        "total": instruction.total,
        "stored": stored,
        **{part: matrix_function(instruction, part) for part in ("zero", "step", "store")},
        "initial": "T.float32(0)" if instruction.is_float else "0",
        "a_term": product_term(instruction, instruction.activation, f"A[{', '.join(bound)}, vk * {group} + vq]"),
        "b_term": product_term(instruction, instruction.weight, "B[vk, vi, vq]"),
        "weight_bytes": element_bytes(instruction.weight),
    }


_ZERO_HEAD: Final = """
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(c: T.handle) -> None:
    C = T.match_buffer(c, ({row_count}{columns}), "{total}", offset_factor=1, scope="local")
    with T.sblock("root"):
        T.reads()
        T.writes(C[{row_region}0:{columns}])
"""
_ZERO: Final = """
        for {row_variables}i in T.grid({row_count}{columns}):
            with T.sblock("zero"):
                {bound_rows}vi = T.axis.remap("{row_kinds}S", [{row_variables}i])
                C[{bound_rows}vi] = {initial}
"""
_ZERO_CALL: Final = """
        T.evaluate(T.call_extern("int32", "{zero}"))
"""

_STEP_HEAD: Final = """
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(a: T.handle, b: T.handle, c: T.handle) -> None:
{a_names}
    b_group = T.int32()
    A = T.match_buffer(a, ({row_count}{depth}), "{activation}", offset_factor=1, strides=[{a_strides}1])
    B = T.match_buffer(
        b, ({groups}, {columns}, {group}), "{weight}", offset_factor=1, strides=[b_group, {group}, 1]
    )
    C = T.match_buffer(c, ({row_count}{columns}), "{total}", offset_factor=1, scope="local")
    with T.sblock("root"):
        T.reads(C[{row_region}0:{columns}], A[{row_region}0:{depth}], B[0:{groups}, 0:{columns}, 0:{group}])
        T.writes(C[{row_region}0:{columns}])
"""
_STEP: Final = """
        for {row_variables}i, k, q in T.grid({row_count}{columns}, {groups}, {group}):
            with T.sblock("step"):
                {bound_rows}vi, vk, vq = T.axis.remap("{row_kinds}SRR", [{row_variables}i, k, q])
                C[{bound_rows}vi] = C[{bound_rows}vi] + {a_term} * {b_term}
"""
_STEP_CALL: Final = """
        T.evaluate(
            T.call_extern(
                "int32",
                "{step}",
                {a_pointer},
                T.cast(a_row * {a_bytes}, "int64"),
                T.cast({a_next} * {a_bytes}, "int64"),
                B.access_ptr("r"),
                T.cast(b_group * {weight_bytes}, "int64"),
            )
        )
"""

_STORE_HEAD: Final = """
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(c: T.handle, d: T.handle) -> None:
{d_names}
    C = T.match_buffer(c, ({row_count}{columns}), "{total}", offset_factor=1, scope="local")
    D = T.match_buffer(
        d, ({row_count}{columns}), "{total}", offset_factor=1, strides=[{d_strides}1], scope="{stored}"
    )
    with T.sblock("root"):
        T.reads(C[{row_region}0:{columns}])
        T.writes(D[{row_region}0:{columns}])
"""
_STORE: Final = """
        for {row_variables}i in T.grid({row_count}{columns}):
            with T.sblock("store"):
                {bound_rows}vi = T.axis.remap("{row_kinds}S", [{row_variables}i])
                D[{bound_rows}vi] = C[{bound_rows}vi]
"""
_STORE_CALL: Final = """
        T.evaluate(
            T.call_extern(
                "int32",
                "{store}",
                D.access_ptr("w"),
                T.cast(d_row * {sum_bytes}, "int64"),
                T.cast({d_next} * {sum_bytes}, "int64"),
            )
        )
"""
