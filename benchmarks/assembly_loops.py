"""The hot loop in AArch64 assembly, and how many products it multiplies.

A natural loop is what lies between a label and a branch back to it; the hot one is the innermost with the most
products.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

_LABEL: Final = re.compile(r"^([.\w$]+):")
_INSTRUCTION: Final = re.compile(r"^\s+([a-z][a-z0-9.]*)(?:\s+(.*))?$")
_BRANCH: Final = re.compile(r"b|b\.[a-z]{2}|cbn?z|tbn?z")
_VECTOR: Final = re.compile(r"v\d+\.(\d+)([bhsd])$")
_SCALAR_FLOAT: Final = re.compile(r"[hsd]\d+$")
_STACK: Final = re.compile(r"\[sp\b")

# Products that each lane of the result takes up: Arm Architecture Reference Manual for A-profile (DDI 0487), chapter
# C7. A dot product multiplies four pairs of bytes (or two of bf16) a lane, a matrix multiplication eight (or four).
_PRODUCTS_OF_A_LANE: Final[Mapping[str, int]] = MappingProxyType(
    {
        **dict.fromkeys(("fmla", "fmls", "fmul", "mla", "mls", "mul"), 1),
        **{f"{sign}{what}{half}": 1 for sign in "su" for what in ("mlal", "mlsl", "mull") for half in ("", "2")},
        **dict.fromkeys(("sdot", "udot", "usdot", "sudot"), 4),
        **dict.fromkeys(("smmla", "ummla", "usmmla"), 8),
        "bfdot": 2,
        "bfmmla": 4,
    }
)
# One product each where the registers are no vectors. Integer `mul` is left out: it computes addresses.
_SCALAR_PRODUCTS: Final = frozenset({"fmadd", "fmsub", "fnmadd", "fnmsub", "fmul", "fnmul"})
_SCALAR_INTEGER_PRODUCTS: Final = frozenset({"madd", "msub"})


class NoLoopError(ValueError):
    """The assembly has no loop that multiplies."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        mnemonic: such as "fmla".
        operands: as they are written, "v0.4s" and so on; an address is one operand.
    """

    mnemonic: str
    operands: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"\t{self.mnemonic}\t{', '.join(self.operands)}".rstrip()

    @property
    def products(self) -> int:
        """Products of two numbers that it computes; 0 for what multiplies no data."""
        if not self.operands:
            return 0
        vector = _VECTOR.fullmatch(self.operands[0])
        if vector is not None:
            return int(vector.group(1)) * _PRODUCTS_OF_A_LANE.get(self.mnemonic, 0)
        if self.mnemonic in _SCALAR_PRODUCTS:
            return int(_SCALAR_FLOAT.fullmatch(self.operands[0]) is not None)
        return int(self.mnemonic in _SCALAR_INTEGER_PRODUCTS and self.operands[0].startswith("w"))

    @property
    def is_load(self) -> bool:
        """Whether it reads memory."""
        return self.mnemonic.startswith("ld") and self._has_address

    @property
    def is_store(self) -> bool:
        """Whether it writes memory."""
        return self.mnemonic.startswith("st") and self._has_address

    @property
    def is_on_stack(self) -> bool:
        """Whether it reads or writes memory that it addresses by the stack pointer."""
        return any(_STACK.match(operand) for operand in self.operands)

    @property
    def target(self) -> str | None:
        """The label that it may jump to; None for what is no direct branch."""
        return self.operands[-1] if _BRANCH.fullmatch(self.mnemonic) else None

    @property
    def _has_address(self) -> bool:
        return any(operand.startswith("[") for operand in self.operands)


@dataclass(frozen=True)
class Loop:
    """A natural loop: the instructions from its label to its branch back."""

    label: str
    instructions: tuple[Instruction, ...]

    @property
    def products(self) -> int:
        """Products of one iteration."""
        return sum(instruction.products for instruction in self.instructions)

    @property
    def spills(self) -> int:
        """Loads from and stores to the stack frame in one iteration."""
        return sum(instruction.is_on_stack for instruction in self.instructions)

    @property
    def multipliers(self) -> Mapping[str, int]:
        """How often each instruction that multiplies stands in it, the most frequent first: "fmla .4s" and so on."""
        counts: dict[str, int] = {}
        for instruction in self.instructions:
            if instruction.products:
                counts[kind(instruction)] = counts.get(kind(instruction), 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def __str__(self) -> str:
        return "\n".join((f"{self.label}:", *map(str, self.instructions))) + "\n"


def kind(instruction: Instruction) -> str:
    """The mnemonic with the arrangement of its result, as "fmla .4s"."""
    vector = _VECTOR.fullmatch(instruction.operands[0]) if instruction.operands else None
    return f"{instruction.mnemonic} .{vector.group(1)}{vector.group(2)}" if vector else instruction.mnemonic


def parse(assembly: str) -> list[str | Instruction]:
    """Labels (as text) and instructions in order, without directives and comments."""
    found: list[str | Instruction] = []
    for line in assembly.splitlines():
        code = line.split("//")[0].rstrip()
        label = _LABEL.match(code)
        if label is not None:
            found.append(label.group(1))
            continue
        instruction = _INSTRUCTION.match(code)
        if instruction is not None:
            found.append(Instruction(instruction.group(1), _operands(instruction.group(2) or "")))
    return found


def innermost(assembly: str) -> list[Loop]:
    """The loops that no other loop lies in."""
    lines = parse(assembly)
    spans = _spans(lines)
    inner = [
        span
        for span in spans
        if not any(span != other and span[0] <= other[0] and other[1] <= span[1] for other in spans)
    ]
    return [
        Loop(str(lines[start]), tuple(item for item in lines[start : end + 1] if isinstance(item, Instruction)))
        for start, end in inner
    ]


def hot_loop(assembly: str) -> Loop:
    """The innermost loop with the most products.

    Raises NoLoopError where no loop multiplies.
    """
    best = max(innermost(assembly), key=lambda loop: loop.products, default=None)
    if best is None or not best.products:
        raise NoLoopError("no loop in the assembly multiplies; is it AArch64 code, and of a kernel that multiplies?")
    return best


def _spans(lines: Sequence[str | Instruction]) -> list[tuple[int, int]]:
    """Places of label and branch of every loop."""
    places: dict[str, int] = {}
    found = []
    for place, line in enumerate(lines):
        if isinstance(line, str):
            places[line] = place
        elif line.target in places:
            found.append((places[line.target], place))
    return found


def _operands(text: str) -> tuple[str, ...]:
    """Split at the commas outside of brackets and braces."""
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    return tuple(part for part in (*parts, current.strip()) if part)
