"""Which instruction multiplies integers and sums them up in 32 bits, by target."""

from __future__ import annotations

from dataclasses import dataclass

from whet.backends.tvm.kernels.cpu import CpuTarget, has_feature


@dataclass(frozen=True)
class DotInstruction:
    """One integer multiply-accumulate: a 32-bit lane adds `group` products of activations and weights.

    `llvm` names the intrinsic, None for plain arithmetic (`group` 1); `accumulates` whether it takes the
    accumulator itself. `features` must all be the target's, `bits` is the vector that it works on.
    """

    name: str
    features: tuple[str, ...]
    bits: int
    group: int
    activation: str
    weight: str
    llvm: str | None
    accumulates: bool = True

    @property
    def lanes(self) -> int:
        """32-bit accumulators in one vector."""
        return self.bits // 32

    @property
    def intrinsic(self) -> str | None:
        """Name that the tensor intrinsic is registered under."""
        return None if self.llvm is None else f"whet.{self.name}"


# Best first. vpmaddubsw (AVX2's byte product) saturates at 16 bits and is not here: it is not exact.
INSTRUCTIONS: tuple[DotInstruction, ...] = (
    DotInstruction("vpdpbusd_512", ("avx512vnni",), 512, 4, "uint8", "int8", "llvm.x86.avx512.vpdpbusd.512"),
    DotInstruction("vpdpbusd_256", ("avx512vnni", "avx512vl"), 256, 4, "uint8", "int8", "llvm.x86.avx512.vpdpbusd.256"),
    DotInstruction("vpdpbusd_256", ("avxvnni",), 256, 4, "uint8", "int8", "llvm.x86.avx512.vpdpbusd.256"),
    DotInstruction("vpmaddwd_512", ("avx512bw",), 512, 2, "int16", "int16", "llvm.x86.avx512.pmaddw.d.512", False),
    DotInstruction("vpmaddwd_256", ("avx2",), 256, 2, "int16", "int16", "llvm.x86.avx2.pmadd.wd", False),
    DotInstruction("sdot", ("dotprod",), 128, 4, "int8", "int8", "llvm.aarch64.neon.sdot"),
)

_BYTES = {"int8": 1, "uint8": 1, "int16": 2}


def widening(target: CpuTarget) -> DotInstruction:
    """Plain exact arithmetic for any target: 16-bit operands, 32-bit products and sums."""
    return DotInstruction("widen", (), target.vector_bits, 1, "int16", "int16", None)


def dot_instruction(target: CpuTarget) -> DotInstruction:
    """The best instruction whose features the target lists and whose vectors are as wide as the target's."""
    for instruction in INSTRUCTIONS:
        if instruction.bits == target.vector_bits and all(has_feature(target, f) for f in instruction.features):
            return instruction
    return widening(target)
