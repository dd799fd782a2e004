from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tvm import te

from tests.backends.tvm.kernel_run import HOST, build
from whet.backends.tvm.intrinsics.dot_product import register, register_by_name
from whet.backends.tvm.intrinsics.instructions import INSTRUCTIONS, dot_instruction, widening
from whet.backends.tvm.kernels.integer import integer_conv, pack_integer_conv_weight, plan_integer_conv
from whet.backends.tvm.kernels.windows import window
from whet.ir.target import CATALOGUE, Target

ALDER_LAKE = replace(
    CATALOGUE["avx2"], name="alderlake", cpu="alderlake", features=(*CATALOGUE["avx2"].features, "avxvnni")
)


def instructions_of(target: Target, source: str) -> Counter[str]:
    """Machine instructions of a scheduled 3x3 convolution, by name."""
    geometry = window((3, 3), (1, 1), ((1, 1), (1, 1)))
    plan = plan_integer_conv(target, (1, 14, 14, 32), 64, geometry, 1, source)
    packed = pack_integer_conv_weight(torch.zeros(64, 32, 3, 3, dtype=torch.int8), plan)
    data = te.placeholder((1, 14, 14, 32), source, name="data")
    filters = te.placeholder(tuple(packed.shape), str(packed.dtype).removeprefix("torch."), name="filters")
    sums = integer_conv(data, filters, geometry=geometry, out_channels=64, plan=plan, zero_point=3)
    module, rule = build(te.create_prim_func([data, filters, sums]), target)
    assert rule == "contraction"
    return Counter(re.findall(r"^\t(?:{vex}\t)?([a-z]\w+)", module.inspect_source("asm"), re.MULTILINE))


@pytest.mark.parametrize("source", ["uint8", "int8"])
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (CATALOGUE["avx512-vnni"], "vpdpbusd"),
        (ALDER_LAKE, "vpdpbusd"),
        (CATALOGUE["avx512"], "vpmaddwd"),
        (CATALOGUE["avx2"], "vpmaddwd"),
        (CATALOGUE["cortex-a76"], "sdot"),
        (CATALOGUE["cortex-a72"], "smlal"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_instruction_is_in_the_code(target: Target, expected: str, source: str) -> None:
    assert instructions_of(target, source)[expected] >= 8


def test_instruction_by_target() -> None:
    assert dot_instruction(CATALOGUE["avx512-vnni"]).name == "vpdpbusd_512"
    assert dot_instruction(CATALOGUE["avx512"]).name == "vpmaddwd_512"
    assert dot_instruction(CATALOGUE["avx2"]).name == "vpmaddwd_256"
    assert dot_instruction(ALDER_LAKE).name == "vpdpbusd_256"
    assert dot_instruction(CATALOGUE["cortex-a76"]).name == "sdot"
    assert dot_instruction(CATALOGUE["cortex-a72"]).name == "widen"
    assert dot_instruction(CATALOGUE["armv7"]).name == "widen"


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda instruction: instruction.name)
def test_every_instruction_registers(instruction) -> None:  # type: ignore[no-untyped-def]
    name = register(instruction)
    assert name == instruction.intrinsic
    assert register_by_name(name) == name


def test_plain_arithmetic_has_no_intrinsic() -> None:
    with pytest.raises(ValueError, match="nothing to tensorize"):
        register(widening(HOST))
