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
    def registers(self) -> int: ...
    @property
    def num_cores(self) -> int: ...
    @property
    def l1_cache_bytes(self) -> int: ...
    @property
    def l2_cache_bytes(self) -> int: ...


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
    """How many elements of `dtype` one vector register holds (32-bit lanes for an unknown dtype)."""
    return max(1, target.vector_bits // _BITS.get(dtype, 32))


def operand_registers(target: CpuTarget) -> int:
    """Vector registers that activations pass through on their way into multiply-adds.

    One where these take an operand out of memory. Elsewhere LLVM loads several ahead; where all but one register hold
    sums it spills, and then code for the Neoverse N1 takes twice the time (docs/benchmarks.md).
    """
    return 1 if target.triple.startswith("x86_64") else 3


def has_feature(target: CpuTarget, feature: str) -> bool:
    """Whether the target lists an LLVM feature, written with or without the leading plus sign."""
    return feature in target.features or f"+{feature}" in target.features


def has_masks(target: CpuTarget) -> bool:
    """Whether loads take a mask that zeroes their lanes (AVX-512), at no cost."""
    return target.triple.startswith("x86_64") and target.vector_bits == 512
