"""Which instruction multiplies short rows of small numbers and sums them up in 32 bits, by target: data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from whet.backends.tvm.kernels.cpu import CpuTarget, has_feature


@dataclass(frozen=True)
class MatrixTile:
    """The registers of a matrix unit that a kernel works on: `down` by `across` of them hold sums.

    A register of activations has `rows` rows of `depth` numbers, one of weights as many by the columns of the
    instruction: one multiplication adds `depth` products to each of its sums. Weights are prefetched `ahead` bytes
    before they are loaded; 0: they are not.
    """

    rows: int
    depth: int
    down: int
    across: int
    ahead: int = 0

    def __str__(self) -> str:
        return f"{self.down}x{self.across}x{self.rows}x{self.depth}" + (f"x{self.ahead}" if self.ahead else "")

    @classmethod
    def parse(cls, text: str) -> MatrixTile:
        """What `str` wrote."""
        down, across, rows, depth, *ahead = (int(part) for part in text.split("x"))
        return cls(rows, depth, down, across, *ahead)


@dataclass(frozen=True)
class DotInstruction:
    """One multiply-accumulate: each 32-bit sum of a vector adds `group` products of activations and weights.

    The sums of one vector are those of `rows` rows of activations by `columns` columns of weights, row by row: most
    instructions take one row and give every lane a column of its own, matrix instructions take two by two.

    `llvm` names the intrinsic, None for plain arithmetic (`group` 1); `accumulates` whether it takes the
    accumulator itself. `features` must all be the target's, `bits` is the vector that it works on, `total` the dtype
    of the sums.

    `products` names an intrinsic that multiplies the operands into 16 bits; `llvm` then adds its results in pairs.
    `by_element` says that the instruction can take the group of activations out of one element of a register, so that
    a plain load fills it and nothing has to spread it over all lanes. `spread` is what that costs where it counts: part
    of a multiply-accumulate for each group.

    `matrix` is set where the instruction is one of a matrix unit and a kernel has chosen what it works on.
    """

    name: str
    features: tuple[str, ...]
    bits: int
    group: int
    activation: str
    weight: str
    llvm: str | None
    accumulates: bool = True
    rows: int = 1
    total: str = "int32"
    products: str | None = None
    by_element: bool = False
    spread: float = 0.0
    matrix: MatrixTile | None = None

    @property
    def lanes(self) -> int:
        """32-bit accumulators in one vector."""
        return self.bits // 32

    @property
    def columns(self) -> int:
        """Columns of weights in one vector."""
        return self.lanes // self.rows

    @property
    def elements(self) -> int:
        """Weights in one vector."""
        return self.columns * self.group

    @property
    def bits_of_group(self) -> int:
        """Bits of the activations that one sum takes up."""
        return self.group * (8 if self.activation in ("int8", "uint8") else 16)

    @property
    def intrinsic(self) -> str | None:
        """Name that the tensor intrinsic is registered under."""
        if self.llvm is None:
            return None
        if self.matrix is not None:
            return f"whet.{self.name}.{self.activation}.{self.matrix}"
        several = self.is_float or self.is_lanewise
        return f"whet.{self.name}.{self.activation}" if several else f"whet.{self.name}"

    @property
    def is_float(self) -> bool:
        """Whether it multiplies bf16 numbers."""
        return self.total == "float32"

    @property
    def is_lanewise(self) -> bool:
        """Whether every lane multiplies one activation of its own with one weight."""
        return self.llvm is not None and self.group == 1


def _bfloat(name: str, features: tuple[str, ...], bits: int, group: int, llvm: str, rows: int = 1) -> DotInstruction:
    return DotInstruction(name, features, bits, group, "int16", "int16", llvm, rows=rows, total="float32")


# Best first. vpmaddubsw (AVX2's byte product) saturates at 16 bits and is not here: it is not exact. The name of the
# 256-bit vpdpbusd stands twice: LLVM writes the VEX form of the same intrinsic where there is no AVX-512.
INSTRUCTIONS: tuple[DotInstruction, ...] = (
    DotInstruction("vpdpbusd_512", ("avx512vnni",), 512, 4, "uint8", "int8", "llvm.x86.avx512.vpdpbusd.512"),
    DotInstruction("vpdpbusd_256", ("avx512vnni", "avx512vl"), 256, 4, "uint8", "int8", "llvm.x86.avx512.vpdpbusd.256"),
    DotInstruction("vpdpbusd_256", ("avxvnni",), 256, 4, "uint8", "int8", "llvm.x86.avx512.vpdpbusd.256"),
    DotInstruction("vpmaddwd_512", ("avx512bw",), 512, 2, "int16", "int16", "llvm.x86.avx512.pmaddw.d.512", False),
    DotInstruction("vpmaddwd_256", ("avx2",), 256, 2, "int16", "int16", "llvm.x86.avx2.pmadd.wd", False),
    DotInstruction("smmla", ("i8mm",), 128, 8, "int8", "int8", "llvm.aarch64.neon.smmla", rows=2),
    DotInstruction("usmmla", ("i8mm",), 128, 8, "uint8", "int8", "llvm.aarch64.neon.usmmla", rows=2),
    DotInstruction("sdot", ("dotprod",), 128, 4, "int8", "int8", "llvm.aarch64.neon.sdot", by_element=True),
    DotInstruction("usdot", ("dotprod", "i8mm"), 128, 4, "uint8", "int8", "llvm.aarch64.neon.usdot", by_element=True),
    DotInstruction("udot", ("dotprod",), 128, 4, "uint8", "uint8", "llvm.aarch64.neon.udot", by_element=True),
    # Two bytes a lane, exact: 16 bits hold each product, 32 their sum. Twice the products of smlal on 16-bit operands.
    DotInstruction(
        "smull",
        ("fp-armv8", "neon"),
        128,
        2,
        "int8",
        "int8",
        "llvm.aarch64.neon.saddlp",
        accumulates=False,
        products="llvm.aarch64.neon.smull",
        spread=0.5,
    ),
)

# The sums are f32 (numerics: R5). What these instructions do with the products of a step: docs/devices.md.
# Weights, and activations that are copied before, are the bits of bf16 numbers in int16: TVM widens every buffer of
# bfloat16 that a function allocates to f32. `reading` gives the same instruction for activations as they are.
BFLOAT_INSTRUCTIONS: tuple[DotInstruction, ...] = (
    _bfloat("vdpbf16ps_512", ("avx512bf16",), 512, 2, "llvm.x86.avx512bf16.dpbf16ps.512"),
    _bfloat("vdpbf16ps_256", ("avx512bf16", "avx512vl"), 256, 2, "llvm.x86.avx512bf16.dpbf16ps.256"),
    _bfloat("bfmmla", ("bf16",), 128, 4, "llvm.aarch64.neon.bfmmla", rows=2),
    _bfloat("bfdot", ("bf16",), 128, 2, "llvm.aarch64.neon.bfdot.v4f32.v8bf16"),
)


# Depthwise convolutions: pairs of 16-bit numbers of which one is zero are one product a lane, in a third of the time of
# the 32-bit multiplication and addition. Weights are int32.
LANE_INSTRUCTIONS: tuple[DotInstruction, ...] = (
    DotInstruction("vpdpwssd_512", ("avx512vnni",), 512, 1, "uint8", "int32", "llvm.x86.avx512.vpdpwssd.512"),
    DotInstruction("lane_pmaddwd_512", ("avx512bw",), 512, 1, "uint8", "int32", "llvm.x86.avx512.pmaddw.d.512", False),
    DotInstruction("lane_pmaddwd_256", ("avx2",), 256, 1, "uint8", "int32", "llvm.x86.avx2.pmadd.wd", False),
)


# Matrix units (Intel AMX; Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18). A
# register has at most 16 rows of 64 bytes; the sums of one are a row of activations by 16 columns.
MATRIX_INSTRUCTIONS: tuple[DotInstruction, ...] = (
    DotInstruction("tdpbusd", ("amx-tile", "amx-int8"), 512, 4, "uint8", "int8", "llvm.x86.tdpbusd"),
    DotInstruction("tdpbssd", ("amx-tile", "amx-int8"), 512, 4, "int8", "int8", "llvm.x86.tdpbssd"),
    _bfloat("tdpbf16ps", ("amx-tile", "amx-bf16"), 512, 2, "llvm.x86.tdpbf16ps"),
)
MATRIX_ROWS: Final = 16
MATRIX_ROW_BYTES: Final = 64


def reading(instruction: DotInstruction, activation: str) -> DotInstruction:
    """The instruction for activations in a buffer of this dtype ("int16" for the bits of bf16 numbers)."""
    return replace(instruction, activation=activation)


def widening(target: CpuTarget) -> DotInstruction:
    """Plain exact arithmetic for any target: 16-bit operands, 32-bit products and sums."""
    return DotInstruction("widen", (), target.vector_bits, 1, "int16", "int16", None)


def dot_instruction(
    target: CpuTarget, source: str | None = None, *, rows: int | None = 1, signed_weights: bool = True
) -> DotInstruction:
    """The best instruction for integers whose features the target lists and whose vectors are as wide as the target's.

    Args:
        target: what the code is for.
        source: dtype of the activations. Of instructions that do as much, the one that takes them as they are.
        rows: rows of activations that there are (None: any number); an instruction for more of them is not taken.
        signed_weights: whether weights must stay signed; not where they are packed at run time, which may shift them.
    """
    usable = [
        instruction
        for instruction in _supported(INSTRUCTIONS, target, rows)
        if not (signed_weights and instruction.weight == "uint8")
    ]
    if not usable:
        return widening(target)
    best = usable[0]
    as_good = [item for item in usable if (item.rows, item.group) == (best.rows, best.group)]
    return next((item for item in as_good if item.activation == source), best)


def bfloat_instruction(target: CpuTarget, *, rows: int | None = None) -> DotInstruction | None:
    """The best instruction for bf16 operands, None where the target has none; `rows` as for `dot_instruction`."""
    return next(iter(_supported(BFLOAT_INSTRUCTIONS, target, rows)), None)


def lane_instruction(target: CpuTarget, source: str) -> DotInstruction | None:
    """The best instruction for one product of 8-bit integers a lane, None where plain arithmetic is as good."""
    best = next(iter(_supported(LANE_INSTRUCTIONS, target, None)), None)
    return None if best is None else reading(best, source)


def matrix_instruction(target: CpuTarget, source: str) -> DotInstruction | None:
    """The instruction of the target's matrix unit for activations of dtype `source`, None where it has none.

    bf16 activations are those of a function's argument ("bfloat16"), or their bits in a copy ("int16").
    """
    is_float = source in ("bfloat16", "int16")
    for instruction in _supported(MATRIX_INSTRUCTIONS, target, None):
        if instruction.is_float == is_float and (is_float or instruction.activation == source):
            return reading(instruction, source)
    return None


def instruction_of(intrinsic: str) -> DotInstruction:
    """The instruction whose tensor intrinsic has this name. Raises KeyError where none has it."""
    _, name, *rest = intrinsic.split(".")
    if len(rest) == 2:
        matrix = {instruction.name: instruction for instruction in MATRIX_INSTRUCTIONS}
        return replace(reading(matrix[name], rest[0]), matrix=MatrixTile.parse(rest[1]))
    direct = [reading(instruction, "bfloat16") for instruction in BFLOAT_INSTRUCTIONS]
    lanes = [reading(instruction, source) for instruction in LANE_INSTRUCTIONS for source in ("uint8", "int8")]
    every = (*INSTRUCTIONS, *BFLOAT_INSTRUCTIONS, *direct, *lanes)
    return {instruction.intrinsic: instruction for instruction in every}[intrinsic]


def _supported(table: Sequence[DotInstruction], target: CpuTarget, rows: int | None) -> list[DotInstruction]:
    return [
        instruction
        for instruction in table
        if instruction.bits == target.vector_bits
        and (rows is None or instruction.rows <= rows)
        and all(has_feature(target, feature) for feature in instruction.features)
    ]
