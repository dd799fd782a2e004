"""Tensor intrinsics of the dot instructions: the form of a block, and the vector code in its place.

They are parsed from text: the decorator of TVMScript walks the interpreter's stack once a function, which
costs seconds. LLVM 22 wants the byte operands of vpdpbusd as vectors of bytes; TVM's own table still passes
32-bit lanes.
"""

from __future__ import annotations

import functools

from tvm import s_tir
from tvm.script import from_source

from whet.backends.tvm.intrinsics.instructions import INSTRUCTIONS, DotInstruction

_HEAD = """
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(
    A: T.Buffer(({group},), "{activation}", offset_factor=1),
    B: T.Buffer(({lanes}, {group}), "{weight}", offset_factor=1),
    C: T.Buffer(({lanes},), "int32", scope="local", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(C[0:{lanes}], A[0:{group}], B[0:{lanes}, 0:{group}])
        T.writes(C[0:{lanes}])
"""

_DESCRIPTION = (
    _HEAD
    + """
        for i in T.serial(0, {lanes}):
            for k in T.serial(0, {group}):
                with T.sblock("update"):
                    vi, vk = T.axis.remap("SR", [i, k])
                    C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")
"""
)

_OPERANDS = """
        C[T.ramp(T.int32(0), 1, {lanes})] = {before}T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("{llvm}"),
            {accumulator}T.reinterpret(
                T.broadcast(T.reinterpret(A.vload([0], "{activation}x{group}"), dtype="int32"), {lanes}),
                dtype="{activation}x{elements}",
            ),
            B.vload([0, 0], dtype="{weight}x{elements}"),
            dtype="int32x{lanes}",
        )
"""


@functools.cache
def register(instruction: DotInstruction) -> str:
    """Make an instruction known to TVM and return the name to tensorize with.

    Raises:
        ValueError: the instruction is plain arithmetic and has no intrinsic.
    """
    name = instruction.intrinsic
    if name is None:
        raise ValueError(f"{instruction.name} is plain arithmetic: there is nothing to tensorize")
    load = f'C.vload([0], dtype="int32x{instruction.lanes}")'
    fields = {
        "group": instruction.group,
        "lanes": instruction.lanes,
        "elements": instruction.lanes * instruction.group,
        "activation": instruction.activation,
        "weight": instruction.weight,
        "llvm": instruction.llvm,
        "before": "" if instruction.accumulates else f"{load} + ",
        "accumulator": f"{load}, " if instruction.accumulates else "",
    }
    description = from_source(_DESCRIPTION.format(**fields))
    implementation = from_source((_HEAD + _OPERANDS).format(**fields))
    s_tir.TensorIntrin.register(name, description, implementation, override=True)
    return name


def register_by_name(name: str) -> str:
    """Register the instruction whose tensor intrinsic has this name.

    Raises:
        KeyError: no instruction has it.
    """
    known = {instruction.intrinsic: instruction for instruction in INSTRUCTIONS}
    return register(known[name])
