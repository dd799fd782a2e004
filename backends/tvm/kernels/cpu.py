"""What the kernels and their schedules need to know about a CPU: vector lanes and vector registers."""

from __future__ import annotations

from typing import Protocol


class CpuTarget(Protocol):
    """The attributes of a target that decide the shape of a CPU kernel (`whet.ir.target.Target` has them)."""

    @property
    def name(self) -> str: ...
    @property
    def triple(self) -> str: ...
    @property
    def cpu(self) -> str: ...
    @property
    def features(self) -> tuple[str, ...]: ...
    @property
    def vector_bits(self) -> int: ...
    @property
    def num_cores(self) -> int: ...


# Architectural vector registers by (first part of the triple, vector width in bits).
_VECTOR_REGISTERS: dict[tuple[str, int], int] = {
    ("x86_64", 512): 32,
    ("x86_64", 256): 16,
    ("x86_64", 128): 16,
    ("aarch64", 128): 32,
    ("armv7", 128): 16,
    ("armv7a", 128): 16,
    ("arm", 128): 16,
}

_BITS: dict[str, int] = {
    "float64": 64,
    "int64": 64,
    "float32": 32,
    "int32": 32,
    "uint32": 32,
    "float16": 16,
    "bfloat16": 16,
    "int16": 16,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
}


def lanes(target: CpuTarget, dtype: str = "float32") -> int:
    """How many elements of `dtype` one vector register holds (32-bit lanes for a dtype that is not tabled)."""
    return max(1, target.vector_bits // _BITS.get(dtype, 32))


def vector_registers(target: CpuTarget) -> int:
    """How many vector registers the instruction set has; 16, the smallest of all, for an unknown one."""
    return _VECTOR_REGISTERS.get((target.triple.split("-")[0], target.vector_bits), 16)


def has_feature(target: CpuTarget, feature: str) -> bool:
    """Whether the target lists an LLVM feature, written with or without the leading plus sign."""
    return feature in target.features or f"+{feature}" in target.features
