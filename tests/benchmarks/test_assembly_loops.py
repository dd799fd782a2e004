"""Loops are found in assembly, and what they multiply is counted; kernels for ARM cores have the loops they should."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.arm_kernels import COLUMNS_INNERMOST, OPS, assembly
from benchmarks.arm_loops import Result, markdown, write_docs
from benchmarks.assembly_loops import Instruction, Loop, NoLoopError, hot_loop, innermost, parse
from whet.ir.target import get_target

NESTED = """
kernel:
\t.cfi_startproc
\tmov\tx8, xzr
.LBB0_1:                                // =>This Loop Header: Depth=1
\tfmul\tv9.4s, v1.4s, v2.4s
\tfmul\tv9.4s, v1.4s, v2.4s
\tfmul\tv9.4s, v1.4s, v2.4s
.LBB0_2:
\tldr\tq1, [x0], #16
\tldr\ts2, [sp, #32]
\tfmla\tv0.4s, v1.4s, v2.s[0]           // a comment
\tfmla\tv3.4s, v1.4s, v2.s[0]
\tstr\tq0, [sp, #16]
\tsubs\tx9, x9, #1
\tb.ne\t.LBB0_2
\tadd\tx8, x8, #1
\tcbnz\tx8, .LBB0_1
.LBB0_3:
\tfmadd\ts0, s1, s2, s0
\ttbnz\tw3, #4, .LBB0_3
\tb\t.LBB0_4
.LBB0_4:
\tret
"""


def test_the_innermost_loop_with_the_most_products_is_hot() -> None:
    loop = hot_loop(NESTED)
    assert (loop.label, len(loop.instructions), loop.products, loop.spills) == (".LBB0_2", 7, 8, 2)
    assert dict(loop.multipliers) == {"fmla .4s": 2}
    assert str(loop).startswith(".LBB0_2:\n\tldr\tq1, [x0], #16\n") and str(loop).endswith("b.ne\t.LBB0_2\n")


def test_only_loops_without_loops_are_innermost() -> None:
    assert [loop.label for loop in innermost(NESTED)] == [".LBB0_2", ".LBB0_3"]


def test_branches_ahead_are_no_loops() -> None:
    with pytest.raises(NoLoopError, match="no loop"):
        hot_loop("\tb.eq\t.L1\n\tfmla\tv0.4s, v1.4s, v2.4s\n.L1:\n\tret\n")


PRODUCTS = {
    "fmla\tv0.4s, v1.4s, v2.s[3]": 4,
    "fmla\tv0.2d, v1.2d, v2.2d": 2,
    "fmul\tv0.4s, v1.4s, v2.4s": 4,
    "fmadd\ts0, s1, s2, s0": 1,
    "fmul\td0, d1, d2": 1,
    "sdot\tv0.4s, v1.16b, v2.4b[0]": 16,
    "udot\tv0.2s, v1.8b, v2.8b": 8,
    "smmla\tv0.4s, v1.16b, v2.16b": 32,
    "bfmmla\tv0.4s, v1.8h, v2.8h": 16,
    "bfdot\tv0.4s, v1.8h, v2.8h": 8,
    "smlal2\tv0.4s, v1.8h, v2.8h": 4,
    "smull\tv0.8h, v1.8b, v2.8b": 8,
    "mla\tv0.8h, v1.8h, v2.8h": 8,
    "madd\tw0, w1, w2, w0": 1,
    # addresses, sums and copies
    "madd\tx0, x1, x2, x0": 0,
    "sadalp\tv0.4s, v1.8h": 0,
    "ld1r\t{ v0.4s }, [x1], #4": 0,
    "mov\tv0.16b, v1.16b": 0,
    "ret": 0,
}


@pytest.mark.parametrize(("text", "products"), PRODUCTS.items(), ids=PRODUCTS)
def test_products_of_an_instruction(text: str, products: int) -> None:
    (instruction,) = parse(f"\t{text}\n")
    assert isinstance(instruction, Instruction)
    assert instruction.products == products


def test_operands_keep_their_brackets() -> None:
    (instruction,) = parse("\tst2\t{ v0.4s, v1.4s }, [x1, #16]\n")
    assert instruction == Instruction("st2", ("{ v0.4s, v1.4s }", "[x1, #16]"))


def loop_of(op: str, core: str) -> Loop:
    return hot_loop(assembly(OPS[op], get_target(core)))


@pytest.mark.parametrize(
    ("op", "core", "multiplier"),
    [
        ("conv3x3 64-64 28 int8", "neoverse-n1", "sdot .4s"),
        ("conv1x1 64-64 28 int8", "cortex-a72", "smull .8h"),
        ("conv3x3 64-64 28 f32", "neoverse-n1", "fmla .4s"),
    ],
)
def test_hot_loops_multiply_and_spill_nothing(op: str, core: str, multiplier: str) -> None:
    """At least half of the instructions multiply (or add in pairs): copies and spills would push them below."""
    loop = loop_of(op, core)
    assert list(loop.multipliers) == [multiplier] and loop.spills == 0
    pairs = 2 if multiplier == "smull .8h" else 1
    assert pairs * loop.multipliers[multiplier] >= 0.5 * len(loop.instructions)
    assert not any(item.mnemonic == "mov" and item.operands[0].startswith("v") for item in loop.instructions)


def test_plain_loops_are_vectorized() -> None:
    loop = hot_loop(assembly(OPS["conv1x1 64-64 28 f32"], get_target("cortex-a76"), COLUMNS_INNERMOST))
    assert "fmla .4s" in loop.multipliers


def test_the_table_goes_between_its_marks(tmp_path: Path) -> None:
    results = [
        Result("cortex-a76", "conv", "whet", {"sdot .4s": 24}, 36, 384, 12.5, 0, 32.0, {"V": 0.98}, {}, 360163),
        Result("cortex-a76", "conv", "plain", {"sdot .4s": 2}, 8, 32, 4.0, 0, 32.0, {"V": 0.5}, {"V": 0.2}),
    ]
    marks = [f"<!-- {word} of arm-loops: python -m benchmarks.arm_loops --docs -->" for word in ("start", "end")]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{marks[0]}\nold\n{marks[1]}\nafter\n")
    write_docs(page, results)
    text = page.read_text()
    assert markdown(results) in text and "old" not in text and text.startswith("before") and text.endswith("after\n")
    assert "| 30.7 of 32 | 96 | 0 | 8.0 | 360 |  | V 98% busy |" in text
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no lines"):
        write_docs(page, results)
