"""LLVM's text of functions that blocks of dot instructions call: what TVM cannot say by calling an intrinsic."""

from __future__ import annotations

from whet.backends.tvm.intrinsics.instructions import DotInstruction

# TVM keeps bf16 in 16-bit integers and cannot name LLVM's own type, which the intrinsics take.
_BFLOAT = """
declare {sums} @{llvm}({sums}, {reals}, {reals})
define linkonce_odr hidden {sums} @{wrapper}({sums} %c, {bits} %a, {bits} %b) alwaysinline nounwind {{
  %x = bitcast {bits} %a to {reals}
  %y = bitcast {bits} %b to {reals}
  %r = call {sums} @{llvm}({sums} %c, {reals} %x, {reals} %y)
  ret {sums} %r
}}
"""

# An activation that is loaded into every lane costs a slot of the arithmetic pipes (ld1r), one that is loaded into the
# first lane does not, and the instruction reads it there. The fence is no code; it hides from LLVM that the lane comes
# out of memory, which it would load into every lane.
_BY_ELEMENT = """
declare {sums} @{llvm}.v{lanes}i32.v{elements}i8({sums}, {bytes}, {bytes})
declare <{lanes} x float> @llvm.arithmetic.fence.v{lanes}f32(<{lanes} x float>)
define linkonce_odr hidden {sums} @{wrapper}({sums} %c, i32 %a, {bytes} %b) alwaysinline nounwind {{
  %word = bitcast i32 %a to float
  %first = insertelement <{lanes} x float> poison, float %word, i32 0
  %kept = call <{lanes} x float> @llvm.arithmetic.fence.v{lanes}f32(<{lanes} x float> %first)
  %whole = bitcast <{lanes} x float> %kept to {sums}
  %every = shufflevector {sums} %whole, {sums} poison, <{lanes} x i32> zeroinitializer
  %x = bitcast {sums} %every to {bytes}
  %r = call {sums} @{llvm}.v{lanes}i32.v{elements}i8({sums} %c, {operands})
  ret {sums} %r
}}
"""


def imported_code(instruction: DotInstruction) -> str | None:
    """The function that a block of the instruction calls; None where it calls the intrinsic itself."""
    template = _BFLOAT if instruction.is_float else _BY_ELEMENT if instruction.by_element else None
    if template is None:
        return None
    elements = instruction.elements
    # The element is the last operand, but usdot wants the unsigned one first; LLVM then takes sudot.
    first, second = ("%x", "%b") if instruction.activation != instruction.weight else ("%b", "%x")
    return template.format(
        llvm=instruction.llvm,
        wrapper=wrapper(instruction),
        lanes=instruction.lanes,
        elements=elements,
        sums=f"<{instruction.lanes} x {'float' if instruction.is_float else 'i32'}>",
        bits=f"<{elements} x i16>",
        reals=f"<{elements} x bfloat>",
        bytes=f"<{elements} x i8>",
        operands=f"<{elements} x i8> {first}, <{elements} x i8> {second}",
    )


def wrapper(instruction: DotInstruction) -> str:
    """The name of that function."""
    return f"whet_{instruction.name}"
