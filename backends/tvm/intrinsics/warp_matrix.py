"""Tensor cores: how a warp's 32 threads hold 16 x 16 matrices, and the instructions that load and multiply them.

`mma.sync` multiplies matrices whose elements lie spread over the registers of a warp (PTX ISA, "Matrix fragments for
mma"). Here one step of a warp is always 16 rows by 16 columns by `depth`, which is 32 bytes of the operands; devices
whose instruction is smaller take several of them, and the registers are the same ones. Both operands lie in shared
memory with their contracted dimension innermost, so `ldmatrix` loads four registers a thread without transposing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

LANES: Final = 32
"""Threads of a warp."""
SIDE: Final = 16
"""Rows and columns of one step."""
SUMS: Final = SIDE * SIDE // LANES
"""Sums that a thread holds of one step."""


@dataclass(frozen=True)
class Steps:
    """How `mma.sync` is called to multiply one step.

    Attributes:
        capability: the first compute capability that has it (80: sm_80).
        shape: of one instruction, in PTX's words.
        count: of instructions.
        registers: number of an instruction -> where its registers begin in a, b (32 bits each) and in the sums.
    """

    capability: int
    shape: str
    count: int
    registers: Callable[[Any], tuple[Any, Any, Any]]


@dataclass(frozen=True)
class WarpInstruction:
    """What one pair of types is multiplied by.

    Attributes:
        name: a part of the intrinsics' names.
        activation, weight, accumulator: TVM's types of a, b and the sums.
        types: the three in the words of TVM's intrinsic.
        depth: how many products a step adds to each sum.
        steps: the ways to compute it, newest first.
    """

    name: str
    activation: str
    weight: str
    accumulator: str
    types: tuple[str, str, str]
    depth: int
    steps: tuple[Steps, ...]

    @property
    def held(self) -> int:
        """Elements of an operand that a thread holds of one step."""
        return SIDE * self.depth // LANES

    def steps_for(self, capability: int) -> Steps | None:
        """The newest way that a device has, None where it has none."""
        return next((steps for steps in self.steps if steps.capability <= capability), None)


# A step's registers: of a [row half + 2 · depth half], of b [2 · column half + depth half].
_HALF_STEPS = (
    Steps(80, "m16n8k16", 2, lambda step: (0, 2 * step, 4 * step)),
    Steps(75, "m16n8k8", 4, lambda step: (2 * (step % 2), step, 4 * (step // 2))),
)
_BYTE_STEPS = (
    Steps(80, "m16n8k32", 2, lambda step: (0, 2 * step, 4 * step)),
    Steps(
        75,
        "m8n8k16",
        8,
        lambda step: (
            step // 2 % 2 + 2 * (step % 2),
            2 * (step // 4) + step % 2,
            4 * (step // 4) + 2 * (step // 2 % 2),
        ),
    ),
)


def _bytes(activation: str, weight: str) -> WarpInstruction:
    return WarpInstruction(
        f"{activation}_{weight}", activation, weight, "int32", (activation, weight, "int32"), 32, _BYTE_STEPS
    )


WARP_INSTRUCTIONS: Final[Mapping[tuple[str, str], WarpInstruction]] = {
    ("float16", "float16"): WarpInstruction(
        "f16", "float16", "float16", "float32", ("fp16", "fp16", "fp32"), 16, _HALF_STEPS
    ),
    **{(left, right): _bytes(left, right) for left in ("int8", "uint8") for right in ("int8", "uint8")},
}
"""Types of a and b -> what multiplies them."""


def row_place(row: Any, k: Any, depth: int) -> tuple[Any, Any]:
    """(thread, element) that holds a[row, k] of a step."""
    each = depth // 8
    return 4 * (row % 8) + k % (depth // 2) // each, each * (row // 8 + 2 * (k // (depth // 2))) + k % each


def column_place(column: Any, k: Any, depth: int) -> tuple[Any, Any]:
    """(thread, element) that holds b[column, k] of a step."""
    each = depth // 8
    return 4 * (column % 8) + k % (depth // 2) // each, each * (2 * (column // 8) + k // (depth // 2)) + k % each


def sum_place(row: Any, column: Any) -> tuple[Any, Any]:
    """(thread, element) that holds the sum of a row and a column of a step."""
    return 4 * (row % 8) + column % 8 // 2, 4 * (column // 8) + 2 * (row // 8) + column % 2


def _row_address(thread: Any, stride: Any, depth: int) -> Any:
    """Which 16 bytes of a thread number points `ldmatrix` to, so that four registers come as `row_place` says."""
    return stride * (thread % 16) + depth // 2 * (thread // 16)


def _column_address(thread: Any, stride: Any, depth: int) -> Any:
    return stride * (8 * (thread // 16) + thread % 8) + depth // 2 * (thread % 16 // 8)


@functools.cache
def load_rows(instruction: WarpInstruction) -> str:
    """Name of the intrinsic that loads 16 rows of a from shared memory."""
    return _registered(f"whet_load_rows_{instruction.name}", *_load(instruction, 0))


@functools.cache
def load_columns(instruction: WarpInstruction) -> str:
    """Name of the intrinsic that loads 16 columns of b, each `depth` elements in a row, from shared memory."""
    return _registered(f"whet_load_columns_{instruction.name}", *_load(instruction, 1))


@functools.cache
def multiply(instruction: WarpInstruction, capability: int) -> str:
    """Name of the intrinsic that adds one step's products. Raises ValueError where the device has none."""
    steps = instruction.steps_for(capability)
    if steps is None:
        raise ValueError(f"sm_{capability} multiplies no matrices of {instruction.name}")
    return _registered(f"whet_multiply_{instruction.name}_{steps.shape}", *_multiply(instruction, steps))


def _registered(name: str, description: Any, implementation: Any) -> str:
    TensorIntrin.register(name, description, implementation, override=True)
    return name


_OPERANDS = ((row_place, _row_address), (column_place, _column_address))


def _load(instruction: WarpInstruction, operand: int) -> tuple[Any, Any]:
    depth, held = instruction.depth, instruction.held
    dtype = (instruction.activation, instruction.weight)[operand]
    place, address = _OPERANDS[operand]

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def description(warp_handle: T.handle, shared_handle: T.handle) -> None:
        shared = T.match_buffer(shared_handle, (16, depth), dtype, align=64, offset_factor=depth // 2, scope="shared")
        warp = T.match_buffer(warp_handle, (32, held), dtype, align=64, offset_factor=held, scope="warp")
        with T.sblock("root"):
            T.reads(shared[0:16, 0:depth])
            T.writes(warp[0:32, 0:held])
            for i, k in T.grid(16, depth):
                with T.sblock("load"):
                    vi, vk = T.axis.remap("SS", [i, k])
                    lane, local = T.meta_var(place(vi, vk, depth))
                    T.reads(shared[vi, vk])
                    T.writes(warp[lane, local])
                    warp[lane, local] = shared[vi, vk]

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(warp_handle: T.handle, shared_handle: T.handle) -> None:
        s0 = T.int32()
        s1 = T.int32()
        shared = T.match_buffer(
            shared_handle, (16, depth), dtype, align=64, offset_factor=depth // 2, scope="shared", strides=[s0, s1]
        )
        warp = T.match_buffer(warp_handle, (32, held), dtype, align=64, offset_factor=held, scope="warp")
        with T.sblock("root"):
            T.reads(shared[0:16, 0:depth])
            T.writes(warp[0:32, 0:held])
            for tx in T.thread_binding(0, 32, "threadIdx.x"):
                T.evaluate(
                    T.ptx_legacy.ldmatrix(
                        False,
                        4,
                        ".b16",
                        warp.data,
                        warp.elem_offset + held * tx,
                        shared.access_ptr("r"),
                        address(tx, s0, depth),
                        dtype=dtype,
                    )
                )

    return description, implementation


def _multiply(instruction: WarpInstruction, steps: Steps) -> tuple[Any, Any]:
    depth, held, sums = instruction.depth, instruction.held, instruction.accumulator
    activation, weight = instruction.activation, instruction.weight
    a_type, b_type, sum_type = instruction.types
    shape, count, registers, each = steps.shape, steps.count, steps.registers, depth // 8

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def description(a_handle: T.handle, b_handle: T.handle, c_handle: T.handle) -> None:
        a = T.match_buffer(a_handle, (32, held), activation, align=64, offset_factor=held, scope="warp")
        b = T.match_buffer(b_handle, (32, held), weight, align=64, offset_factor=held, scope="warp")
        c = T.match_buffer(c_handle, (32, 8), sums, align=64, offset_factor=8, scope="warp")
        with T.sblock("root"):
            T.reads(c[0:32, 0:8], a[0:32, 0:held], b[0:32, 0:held])
            T.writes(c[0:32, 0:8])
            for i, j, k in T.grid(16, 16, depth):
                with T.sblock("multiply"):
                    vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                    a_lane, a_local = T.meta_var(row_place(vi, vk, depth))
                    b_lane, b_local = T.meta_var(column_place(vj, vk, depth))
                    c_lane, c_local = T.meta_var(sum_place(vi, vj))
                    T.reads(c[c_lane, c_local], a[a_lane, a_local], b[b_lane, b_local])
                    T.writes(c[c_lane, c_local])
                    c[c_lane, c_local] = c[c_lane, c_local] + T.cast(a[a_lane, a_local], sums) * T.cast(
                        b[b_lane, b_local], sums
                    )

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def implementation(a_handle: T.handle, b_handle: T.handle, c_handle: T.handle) -> None:
        a = T.match_buffer(a_handle, (32, held), activation, align=64, offset_factor=held, scope="warp")
        b = T.match_buffer(b_handle, (32, held), weight, align=64, offset_factor=held, scope="warp")
        c = T.match_buffer(c_handle, (32, 8), sums, align=64, offset_factor=8, scope="warp")
        with T.sblock("root"):
            T.reads(c[0:32, 0:8], a[0:32, 0:held], b[0:32, 0:held])
            T.writes(c[0:32, 0:8])
            for tx in T.thread_binding(0, 32, "threadIdx.x"):
                for step in T.unroll(count):
                    a_at, b_at, c_at = T.meta_var(registers(step))
                    T.evaluate(
                        T.ptx_legacy.mma(
                            shape,
                            "row",
                            "col",
                            a_type,
                            b_type,
                            sum_type,
                            a.data,
                            a.elem_offset + held * tx + each * a_at,
                            b.data,
                            b.elem_offset + held * tx + each * b_at,
                            c.data,
                            c.elem_offset + 8 * tx + c_at,
                            False,
                            dtype=sums,
                        )
                    )

    return description, implementation
