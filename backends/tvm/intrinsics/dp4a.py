"""dp4a: one instruction of a GPU's thread that adds four products of bytes to a sum (PTX ISA, "dp4a")."""

from __future__ import annotations

import functools
from typing import Any, Final

from tvm.backend.cuda.op import cuda_func_call
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

GROUP: Final = 4
"""Products of one instruction."""

_TYPES: Final = {"int8": "s32", "uint8": "u32"}
"""TVM's type of four bytes in a register -> PTX's."""

# CUDA's own __dp4a has no form for operands of two kinds.
_SOURCE = """
static __device__ __forceinline__ int {name}(const void* a, const void* b, int c) {{
  int d;
  asm("dp4a.{a}.{b} %0, %1, %2, %3;" : "=r"(d) : "r"(*(const int*)a), "r"(*(const int*)b), "r"(c));
  return d;
}}
"""


def has_dp4a(activation: str, weight: str) -> bool:
    """Whether dp4a multiplies these types."""
    return activation in _TYPES and weight in _TYPES


@functools.cache
def dp4a(activation: str, weight: str) -> str:
    """Name of the intrinsic for two types of bytes. Every supported device has it (from sm_61 on)."""
    name = f"whet_dp4a_{activation}_{weight}"
    source = _SOURCE.format(name=name, a=_TYPES[activation], b=_TYPES[weight])

    def call(a: Any, b: Any, c: Any) -> Any:
        return cuda_func_call(name, T.address_of(a), T.address_of(b), c, source_code=source, return_type="int32")

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def description(a_handle: T.handle, b_handle: T.handle, c_handle: T.handle) -> None:
        a = T.match_buffer(a_handle, (4,), activation, align=4, offset_factor=4, scope="local")
        b = T.match_buffer(b_handle, (4,), weight, align=4, offset_factor=4, scope="local")
        c = T.match_buffer(c_handle, (1,), "int32", align=4, offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(c[0], a[0:4], b[0:4])
            T.writes(c[0])
            for k in range(4):
                with T.sblock("multiply"):
                    vk = T.axis.remap("R", [k])
                    c[0] = c[0] + T.cast(a[vk], "int32") * T.cast(b[vk], "int32")

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(a_handle: T.handle, b_handle: T.handle, c_handle: T.handle) -> None:
        a = T.match_buffer(a_handle, (4,), activation, align=4, offset_factor=4, scope="local")
        b = T.match_buffer(b_handle, (4,), weight, align=4, offset_factor=4, scope="local")
        c = T.match_buffer(c_handle, (1,), "int32", align=4, offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(c[0], a[0:4], b[0:4])
            T.writes(c[0])
            c[0] = call(a[0], b[0], c[0])

    TensorIntrin.register(name, description, implementation, override=True)
    return name
