"""Tensor intrinsics of the dot instructions: the form of a block, and the vector code in its place.

They are parsed from text: the decorator of TVMScript walks the interpreter's stack once a function, which
costs seconds. LLVM 22 wants the byte operands of vpdpbusd as vectors of bytes; TVM's own table still passes
32-bit lanes.

A block is `C[rows, columns] += A[rows, group] · B[columns, group]ᵀ`; the row dimension is left out where an
instruction takes one row, whose elements it then wants in every lane.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from tvm import s_tir
from tvm.script import from_source

from whet.backends.tvm.intrinsics.instructions import DotInstruction, instruction_of
from whet.backends.tvm.intrinsics.llvm_code import imported_code, wrapper

_HEAD = """
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(
    A: T.Buffer({a_shape}, "{activation}", {a_scope}offset_factor=1),
    B: T.Buffer(({columns}, {group}), "{weight}", offset_factor=1),
    C: T.Buffer({c_shape}, "{total}", scope="local", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(C[{c_region}], A[{a_region}], B[0:{columns}, 0:{group}])
        T.writes(C[{c_region}])
"""

_ROW_DESCRIPTION = """
        for i in T.serial(0, {columns}):
            for k in T.serial(0, {group}):
                with T.sblock("update"):
                    vi, vk = T.axis.remap("SR", [i, k])
                    C[vi] = C[vi] + {a_term} * {b_term}
"""

_MATRIX_DESCRIPTION = """
        for r in T.serial(0, {rows}):
            for i in T.serial(0, {columns}):
                for k in T.serial(0, {group}):
                    with T.sblock("update"):
                        vr, vi, vk = T.axis.remap("SSR", [r, i, k])
                        C[vr, vi] = C[vr, vi] + {a_term} * {b_term}
"""

_OPERANDS = """
        C[{c_store}] = {before}{call}
"""


_LANE_HEAD = """
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(
    A: T.Buffer(({lanes},), "{activation}", offset_factor=1),
    B: T.Buffer(({lanes},), "int32", offset_factor=1),
    C: T.Buffer(({lanes},), "int32", scope="local", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(C[0:{lanes}], A[0:{lanes}], B[0:{lanes}])
        T.writes(C[0:{lanes}])
"""

_LANE_DESCRIPTION = """
        for i in T.serial(0, {lanes}):
            with T.sblock("update"):
                vi = T.axis.remap("S", [i])
                C[vi] = C[vi] + T.cast(A[vi], "int32") * B[vi]
"""

# The upper half of each weight is cleared, whatever the upper half of the activation is.
_LANE_OPERANDS = """
        C[T.ramp(T.int32(0), 1, {lanes})] = {before}T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("{llvm}"),
            {accumulator}T.reinterpret(
                T.cast(A.vload([0], dtype="{activation}x{lanes}"), "int32x{lanes}"), dtype="int16x{pairs}"
            ),
            T.reinterpret(
                T.bitwise_and(B.vload([0], dtype="int32x{lanes}"), T.broadcast(T.int32(65535), {lanes})),
                dtype="int16x{pairs}",
            ),
            dtype="int32x{lanes}",
        )
"""


@dataclass(frozen=True)
class _Form:
    """How blocks of one or of several rows are written."""

    a_shape: str
    a_scope: str
    a_region: str
    a_load: str
    c_shape: str
    c_region: str
    c_store: str
    c_load: str
    a_element: str
    description: str


_ROW = _Form(
    a_shape="({group},)",
    a_scope="",
    a_region="0:{group}",
    a_load='T.reinterpret(T.broadcast(T.reinterpret(A.vload([0], "{activation}x{group}"), dtype="int{group_bits}"), '
    '{lanes}), dtype="{vector}")',
    c_shape="({lanes},)",
    c_region="0:{lanes}",
    c_store="T.ramp(T.int32(0), 1, {lanes})",
    c_load='C.vload([0], dtype="{total}x{lanes}")',
    a_element="A[vk]",
    description=_ROW_DESCRIPTION,
)
# The instruction itself spreads the activations over its lanes.
_ELEMENT = replace(_ROW, a_load='T.reinterpret(A.vload([0], "{activation}x{group}"), dtype="int{group_bits}")')
# The rows of activations are gathered in a buffer of the function's own.
_MATRIX = _Form(
    a_shape="({rows}, {group})",
    a_scope='scope="local", ',
    a_region="0:{rows}, 0:{group}",
    a_load="T.Shuffle([{a_rows}], [{places}])",
    c_shape="({rows}, {columns})",
    c_region="0:{rows}, 0:{columns}",
    c_store="T.int32(0), T.ramp(T.int32(0), 1, {lanes})",
    c_load='C.vload([0, 0], dtype="{total}x{lanes}")',
    a_element="A[vr, vk]",
    description=_MATRIX_DESCRIPTION,
)


@functools.cache
def register(instruction: DotInstruction) -> str:
    """Make an instruction known to TVM and return the name to tensorize with.

    Raises:
        ValueError: the instruction is plain arithmetic and has no intrinsic.
    """
    name = instruction.intrinsic
    if name is None:
        raise ValueError(f"{instruction.name} is plain arithmetic: there is nothing to tensorize")
    if instruction.is_lanewise:
        return _register_lanes(instruction, name)
    form = _MATRIX if instruction.rows > 1 else _ELEMENT if instruction.by_element else _ROW
    fields = _fields(instruction, form)
    head = _HEAD.format(**fields)
    description = from_source(head + form.description.format(**fields))
    implementation = from_source(head + _OPERANDS.format(**fields))
    s_tir.TensorIntrin.register(name, description, implementation, override=True)
    return name


def _register_lanes(instruction: DotInstruction, name: str) -> str:
    load = f'C.vload([0], dtype="int32x{instruction.lanes}")'
    fields = {
        "lanes": instruction.lanes,
        "pairs": 2 * instruction.lanes,
        "activation": instruction.activation,
        "llvm": instruction.llvm,
        "before": "" if instruction.accumulates else f"{load} + ",
        "accumulator": f"{load}, " if instruction.accumulates else "",
    }
    description, implementation = (
        from_source((_LANE_HEAD + body).format(**fields)) for body in (_LANE_DESCRIPTION, _LANE_OPERANDS)
    )
    s_tir.TensorIntrin.register(name, description, implementation, override=True)
    return name


def register_by_name(name: str) -> str:
    """Register the instruction whose tensor intrinsic has this name.

    Raises:
        KeyError: no instruction has it.
    """
    return register(instruction_of(name))


def _fields(instruction: DotInstruction, form: _Form) -> dict[str, object]:
    """What the templates above are filled with."""
    elements = instruction.elements
    plain: dict[str, object] = {
        "rows": instruction.rows,
        "columns": instruction.columns,
        "lanes": instruction.lanes,
        "group": instruction.group,
        "elements": elements,
        "group_bits": instruction.bits_of_group,
        "activation": instruction.activation,
        "weight": instruction.weight,
        "total": instruction.total,
        "vector": f"{'int16' if instruction.is_float else instruction.activation}x{elements}",
    }
    # Each row is loaded by itself, as it was stored: then the buffer between them becomes registers.
    row = f'dtype="{instruction.activation}x{instruction.group}"'
    plain["a_rows"] = ", ".join(f"A.vload([{index}, 0], {row})" for index in range(instruction.rows))
    plain["places"] = ", ".join(str(place) for place in range(instruction.rows * instruction.group))
    parts = {name: text.format(**plain) for name, text in vars(form).items() if name != "description"}
    factors = f'{parts["a_load"]}, B.vload([0, 0], dtype="{instruction.weight}x{elements}")'
    return {
        **plain,
        **parts,
        "call": instruction_call(instruction, parts["c_load"], factors),
        "a_term": product_term(instruction, instruction.activation, form.a_element),
        "b_term": product_term(instruction, instruction.weight, "B[vi, vk]"),
        "before": "" if instruction.accumulates else f"{parts['c_load']} + ",
    }


def instruction_call(instruction: DotInstruction, sums: str, factors: str) -> str:
    """TVMScript's call of the instruction on two vectors of factors, after the sums where it takes these itself."""
    operands = f"{sums}, {factors}" if instruction.accumulates else factors
    dtype = f"{instruction.total}x{instruction.lanes}"
    if imported_code(instruction) is not None:
        return f'T.call_pure_extern("{wrapper(instruction)}", {operands}, dtype="{dtype}")'
    if instruction.products is not None:
        operands = _intrinsic(instruction.products, operands, f"int16x{instruction.elements}")
    return _intrinsic(str(instruction.llvm), operands, dtype)


def _intrinsic(name: str, operands: str, dtype: str) -> str:
    return f'T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id("{name}"), {operands}, dtype="{dtype}")'


def product_term(instruction: DotInstruction, dtype: str, element: str) -> str:
    """A factor of a product, as `whet.backends.tvm.kernels.dot` writes it."""
    if instruction.is_float and dtype == "int16":
        return f'T.reinterpret(T.shift_left(T.cast({element}, "uint32"), T.uint32(16)), dtype="float32")'
    return f'T.cast({element}, "{instruction.total}")'
