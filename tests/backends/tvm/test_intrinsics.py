"""Each instruction is in the code for a target that has it, whatever this machine is."""

from __future__ import annotations

import re

import pytest
import torch
import tvm

from tests.backends.tvm.dot_cases import (
    ALDER_LAKE,
    COOPER_LAKE,
    COOPER_LAKE_256,
    NEOVERSE_N2,
    SAPPHIRE_RAPIDS,
    VNNI_256,
    constants,
)
from tests.backends.tvm.kernel_run import HOST
from tests.backends.tvm.one_op import graph_of
from tests.ir.samples import Sample
from whet.backends.tvm.emit import emit
from whet.backends.tvm.intrinsics.dot_product import register, register_by_name
from whet.backends.tvm.intrinsics.instructions import (
    BFLOAT_INSTRUCTIONS,
    INSTRUCTIONS,
    DotInstruction,
    bfloat_instruction,
    dot_instruction,
    widening,
)
from whet.backends.tvm.pipeline import build_kernel
from whet.backends.tvm.schedule.rules import schedule_cpu
from whet.backends.tvm.targets import tvm_target
from whet.ir.target import CATALOGUE, Target

CORTEX_A76, CORTEX_A72 = CATALOGUE["cortex-a76"], CATALOGUE["cortex-a72"]
CONV = {"layout": "channels_last", "padding": ((1, 1), (1, 1)), "stride": (1, 1), "dilation": (1, 1), "groups": 1}
TYPES = {"u8": torch.uint8, "i8": torch.int8, "bf16": torch.bfloat16}


def zeros(dtype: str, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=TYPES[dtype])


def conv(dtype: str) -> Sample:
    """3x3 over many pixels."""
    weight = zeros("bf16" if dtype == "bf16" else "i8", 64, 32, 3, 3)
    name, zero_point = ("conv", {}) if dtype == "bf16" else ("conv_integer", {"x_zero_point": 3})
    return Sample(name, (zeros(dtype, 1, 14, 14, 32), weight), {**CONV, **zero_point})


def depthwise(dtype: str) -> Sample:
    """3x3, each channel by itself."""
    operands = zeros(dtype, 1, 14, 14, 64), zeros("i8", 64, 1, 3, 3)
    return Sample("conv_integer", operands, {**CONV, "groups": 64, "x_zero_point": 3})


def linear(dtype: str) -> Sample:
    """One row of activations."""
    name = "linear" if dtype == "bf16" else "linear_integer"
    return Sample(name, (zeros(dtype, 1, 256), zeros("bf16" if dtype == "bf16" else "i8", 64, 256)))


def large_linear() -> Sample:
    """Sixteen rows of activations by more weights than the second cache keeps."""
    return Sample("linear_integer", (zeros("u8", 16, 1024), zeros("i8", 2048, 1024)))


def matmul(left: str, right: str) -> Sample:
    """Two activations: heads of attention."""
    name = "matmul" if left == "bf16" else "matmul_integer"
    return Sample(name, (zeros(left, 2, 12, 64), zeros(right, 2, 64, 32)))


def assembly(sample: Sample, target: Target) -> str:
    """What LLVM makes of the operation's kernel, without directives and comments."""
    graph, _ = graph_of([sample], constants([sample]))
    emitted = emit(graph, target, schedule_cpu, lambda _: None)
    (kernel,) = (item for item in emitted.module.functions.values() if isinstance(item, tvm.tirx.PrimFunc))
    assert emitted.kernels[0].schedule in ("contraction", "depthwise")
    text = build_kernel(kernel, tvm_target(target)).inspect_source("asm")
    return "\n".join(line for line in text.splitlines() if re.match(r"\t[a-z{]", line))


# The least number of them: one for each accumulator of the smallest tile.
FEWEST = 4
EMITTED: list[tuple[str, Target, Sample, str]] = [
    ("vpdpbusd", CATALOGUE["avx512-vnni"], conv("u8"), r"^\tvpdpbusd\t.*%zmm"),
    ("vpdpbusd after a shift", CATALOGUE["avx512-vnni"], conv("i8"), r"^\tvpdpbusd\t.*%zmm"),
    ("vpdpbusd of a row", CATALOGUE["avx512-vnni"], linear("u8"), r"^\tvpdpbusd\t.*%zmm"),
    ("vpdpbusd of activations", CATALOGUE["avx512-vnni"], matmul("u8", "i8"), r"^\tvpdpbusd\t.*%zmm"),
    ("vpdpwssd", CATALOGUE["avx512-vnni"], depthwise("u8"), r"^\tvpdpwssd\t.*%zmm"),
    ("vpmaddwd of 512 bits, depthwise", CATALOGUE["avx512"], depthwise("i8"), r"^\tvpmaddwd\t.*%zmm"),
    ("vpmaddwd, depthwise", CATALOGUE["avx2"], depthwise("u8"), r"^\tvpmaddwd\t.*%ymm"),
    ("smlal, depthwise", CORTEX_A72, depthwise("u8"), r"^\tsmlal2?\tv\d+\.4s"),
    ("vpdpbusd of 256 bits", VNNI_256, conv("u8"), r"^\tvpdpbusd\t.*%ymm"),
    ("vpdpbusd of AVX-VNNI", ALDER_LAKE, conv("u8"), r"^\t\{vex\}\tvpdpbusd\t.*%ymm"),
    ("vpmaddwd of 512 bits", CATALOGUE["avx512"], conv("u8"), r"^\tvpmaddwd\t.*%zmm"),
    ("vpmaddwd of 512 bits, activations", CATALOGUE["avx512"], matmul("i8", "i8"), r"^\tvpmaddwd\t.*%zmm"),
    ("vpmaddwd", CATALOGUE["avx2"], conv("i8"), r"^\tvpmaddwd\t.*%ymm"),
    ("vpmaddwd of activations", CATALOGUE["avx2"], matmul("u8", "u8"), r"^\tvpmaddwd\t.*%ymm"),
    ("smull", CORTEX_A72, conv("i8"), r"^\tsmull\tv\d+\.8h"),
    ("sadalp", CORTEX_A72, conv("u8"), r"^\tsadalp\tv\d+\.4s, v\d+\.8h"),
    ("smull of activations", CORTEX_A72, matmul("i8", "i8"), r"^\tsmull\tv\d+\.8h"),
    ("sdot", CORTEX_A76, conv("i8"), r"^\tsdot\tv\d+\.4s"),
    ("sdot by element", CORTEX_A76, conv("i8"), r"^\tsdot\tv\d+\.4s, v\d+\.16b, v\d+\.4b\[0\]"),
    ("udot by element", CORTEX_A76, matmul("u8", "i8"), r"^\tudot\tv\d+\.4s, v\d+\.16b, v\d+\.4b\[0\]"),
    ("usdot of a row, by element", NEOVERSE_N2, linear("u8"), r"^\tsudot\tv\d+\.4s, v\d+\.16b, v\d+\.4b\[0\]"),
    ("sdot after a shift", CORTEX_A76, conv("u8"), r"^\tsdot\tv\d+\.4s"),
    ("sdot of activations", CORTEX_A76, matmul("i8", "u8"), r"^\tsdot\tv\d+\.4s"),
    ("udot of activations", CORTEX_A76, matmul("u8", "i8"), r"^\tudot\tv\d+\.4s"),
    ("smmla", NEOVERSE_N2, conv("i8"), r"^\tsmmla\tv\d+\.4s"),
    ("usmmla", NEOVERSE_N2, conv("u8"), r"^\tusmmla\tv\d+\.4s"),
    ("smmla of activations", NEOVERSE_N2, matmul("i8", "i8"), r"^\tsmmla\tv\d+\.4s"),
    ("sdot of a row", NEOVERSE_N2, linear("i8"), r"^\tsdot\tv\d+\.4s"),
    ("tdpbusd", SAPPHIRE_RAPIDS, conv("u8"), r"^\ttdpbusd\t%tmm"),
    ("prefetched weights", SAPPHIRE_RAPIDS, large_linear(), r"^\tprefetcht1"),
    ("tdpbssd", SAPPHIRE_RAPIDS, conv("i8"), r"^\ttdpbssd\t%tmm"),
    ("tdpbusd of activations", SAPPHIRE_RAPIDS, matmul("u8", "i8"), r"^\ttdpbusd\t%tmm"),
    ("vpdpbusd of a row, for a matrix unit", SAPPHIRE_RAPIDS, linear("u8"), r"^\tvpdpbusd\t.*%zmm"),
    ("tdpbf16ps", SAPPHIRE_RAPIDS, conv("bf16"), r"^\ttdpbf16ps\t%tmm"),
    ("tdpbf16ps of activations", SAPPHIRE_RAPIDS, matmul("bf16", "bf16"), r"^\ttdpbf16ps\t%tmm"),
    ("vdpbf16ps", COOPER_LAKE, conv("bf16"), r"^\tvdpbf16ps\t.*%zmm"),
    ("vdpbf16ps of a row", COOPER_LAKE, linear("bf16"), r"^\tvdpbf16ps\t.*%zmm"),
    ("vdpbf16ps of activations", COOPER_LAKE, matmul("bf16", "bf16"), r"^\tvdpbf16ps\t.*%zmm"),
    ("vdpbf16ps of 256 bits", COOPER_LAKE_256, conv("bf16"), r"^\tvdpbf16ps\t.*%ymm"),
    ("bfmmla", NEOVERSE_N2, conv("bf16"), r"^\tbfmmla\tv\d+\.4s"),
    ("bfmmla of activations", NEOVERSE_N2, matmul("bf16", "bf16"), r"^\tbfmmla\tv\d+\.4s"),
    ("bfdot of a row", NEOVERSE_N2, linear("bf16"), r"^\tbfdot\tv\d+\.4s"),
]


@pytest.mark.parametrize(("target", "sample", "pattern"), [row[1:] for row in EMITTED], ids=[row[0] for row in EMITTED])
def test_the_instruction_is_in_the_code(target: Target, sample: Sample, pattern: str) -> None:
    text = assembly(sample, target)
    # the registers of a matrix unit are whole tiles of sums
    fewest = 1 if "tmm" in pattern else FEWEST
    assert len(re.findall(pattern, text, re.MULTILINE)) >= fewest
    # the saturating byte product is not exact
    assert "vpmaddubsw" not in text


def test_instruction_by_target() -> None:
    assert dot_instruction(NEOVERSE_N2, rows=None).name == "smmla"
    assert dot_instruction(NEOVERSE_N2, "uint8", rows=None).name == "usmmla"
    assert dot_instruction(NEOVERSE_N2, "uint8").name == "usdot"
    assert dot_instruction(NEOVERSE_N2).name == "sdot"
    assert dot_instruction(CATALOGUE["cortex-a76"], "uint8").name == "sdot"
    assert dot_instruction(CATALOGUE["cortex-a76"], "uint8", signed_weights=False).name == "udot"
    assert bfloat_instruction(CATALOGUE["avx512"]) is None
    assert bfloat_instruction(NEOVERSE_N2, rows=1) == BFLOAT_INSTRUCTIONS[-1]
    assert dot_instruction(CATALOGUE["avx512-vnni"]).name == "vpdpbusd_512"
    assert dot_instruction(CATALOGUE["avx512"]).name == "vpmaddwd_512"
    assert dot_instruction(CATALOGUE["avx2"]).name == "vpmaddwd_256"
    assert dot_instruction(ALDER_LAKE).name == "vpdpbusd_256"
    assert dot_instruction(CATALOGUE["cortex-a76"]).name == "sdot"
    assert dot_instruction(CATALOGUE["cortex-a72"]).name == "smull"
    assert dot_instruction(CATALOGUE["arm"]).name == "smull"
    assert dot_instruction(CATALOGUE["armv7"]).name == "widen"


@pytest.mark.parametrize("instruction", [*INSTRUCTIONS, *BFLOAT_INSTRUCTIONS], ids=lambda instruction: instruction.name)
def test_every_instruction_registers(instruction: DotInstruction) -> None:
    name = register(instruction)
    assert name == instruction.intrinsic
    assert register_by_name(name) == name


def test_plain_arithmetic_has_no_intrinsic() -> None:
    with pytest.raises(ValueError, match="nothing to tensorize"):
        register(widening(HOST))


@pytest.mark.parametrize("name", ["avx512-vnni", "cortex-a72", "cortex-a76"])
def test_the_sums_of_a_tile_are_no_memory_of_the_runtime(name: str) -> None:
    target = CATALOGUE[name]
    rows = Sample("linear_integer", (zeros(target.activation_dtype.value, 96, 256), zeros("i8", 64, 256)))
    assert "AllocWorkspace" not in assembly(rows, target)
