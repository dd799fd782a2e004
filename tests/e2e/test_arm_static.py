"""Static programs on emulated 32-bit ARM cores: this machine's numbers. Those for AArch64: test_arm_models.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

import whet
from tests.e2e.arm_models import graph_for
from tests.e2e.networks import Counter, relative_error
from tests.static_programs import build, run, same_bits
from whet.backends.base import CompiledModule
from whet.ir import Graph

pytestmark = [pytest.mark.arm, pytest.mark.timeout(1800)]

EMULATORS = {
    "cortex-a72": ("qemu-aarch64-static", "-cpu", "cortex-a72"),
    "cortex-a76": ("qemu-aarch64-static", "-cpu", "cortex-a76"),
    "armv7": ("qemu-arm-static", "-cpu", "cortex-a7"),
}


def run_static(compiled: CompiledModule, folder: Path, calls: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Outputs of the exported program on the emulated core, without any library there."""
    target = compiled.target.name
    program = compiled.export_c(folder)
    print(program)
    assert program.arena_bytes < 1.5 * program.live_bytes
    return run(build(folder, "LDFLAGS=-static"), compiled.manifest, calls, EMULATORS[target])


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_lenet_on_32_bit_arm(precision: str, tmp_path: Path) -> None:
    graph, inputs = graph_for("lenet5", "armv7", precision)
    outputs = run_static(whet.optimize(graph, "armv7"), tmp_path, inputs[:2])
    for (x,), (actual,) in zip(inputs, outputs, strict=False):
        agrees_with_this_machine(graph, precision, x, actual)


def agrees_with_this_machine(graph: Graph, precision: str, x: Tensor, actual: Tensor) -> None:
    here = whet.optimize(graph, "x86")(x)
    if precision == "int8":
        assert same_bits(actual, here)
    assert relative_error(actual, here) < 1e-4
    assert actual.argmax() == here.argmax()


def test_state_on_32_bit_arm(tmp_path: Path) -> None:
    calls = [[torch.full((4,), float(number))] for number in range(3)]
    compiled = whet.optimize(Counter().eval(), "armv7", example_inputs=(calls[0][0],))
    outputs = run_static(compiled, tmp_path, calls)
    assert [(mean.tolist(), int(count)) for mean, count in outputs] == [
        ([0.0] * 4, 1),
        ([0.5] * 4, 2),
        ([1.0] * 4, 3),
    ]


@pytest.mark.skipif(find_spec("ziglang") is None, reason="zig is not installed: pip install 'whet[cross]'")
def test_zig_builds_it(tmp_path: Path) -> None:
    graph, inputs = graph_for("lenet5", "armv7", "int8")
    compiled = whet.optimize(graph, "armv7")
    compiled.export_c(tmp_path)
    program = build(tmp_path, "LDFLAGS=-static", f"CC={sys.executable} -m ziglang cc -target arm-linux-musleabihf")
    ((actual,),) = run(program, compiled.manifest, inputs[:1], EMULATORS["armv7"])
    agrees_with_this_machine(graph, "int8", inputs[0][0], actual)
