"""The instructions that kernels for CUDA are planned for are in the PTX that nvcc makes of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
import tvm
import tvm_ffi

from tests.backends.tvm.dot_cases import constants
from tests.backends.tvm.one_op import graph_of
from tests.backends.tvm.test_intrinsics import CONV, matmul, zeros
from tests.ir.samples import Sample
from whet.backends.tvm.build_options import OPTIONS_BY_KIND
from whet.backends.tvm.cuda import schedule_cuda
from whet.backends.tvm.emit import emit
from whet.backends.tvm.nvcc import CALLBACK
from whet.backends.tvm.pipeline import build_kernel
from whet.backends.tvm.targets import tvm_target
from whet.ir.target import Target, get_target

pytestmark = pytest.mark.cuda

F16 = torch.float16
POINTWISE = {**CONV, "padding": ((0, 0), (0, 0))}
SAMPLES = {
    "linear": Sample("linear_integer", (zeros("u8", 64, 256), zeros("i8", 64, 256)), {"x_zero_point": 7}),
    "pointwise": Sample(
        "conv_integer", (zeros("i8", 1, 14, 14, 128), zeros("i8", 128, 128, 1, 1)), {**POINTWISE, "x_zero_point": -5}
    ),
    "convolution": Sample(
        "conv_integer", (zeros("u8", 1, 14, 14, 64), zeros("i8", 128, 64, 3, 3)), {**CONV, "x_zero_point": 0}
    ),
    "activations": matmul("i8", "i8"),
    "half linear": Sample("linear", (torch.zeros(64, 256, dtype=F16), torch.zeros(64, 256, dtype=F16)), {}),
    "half convolution": Sample(
        "conv", (torch.zeros(1, 14, 14, 64, dtype=F16), torch.zeros(128, 64, 3, 3, dtype=F16)), CONV
    ),
    "half matmul": Sample("matmul", (torch.zeros(2, 64, 64, dtype=F16), torch.zeros(2, 64, 64, dtype=F16)), {}),
}
SHAPES = {
    "sm_75": {"integer": "m8n8k16", "half": "m16n8k8"},
    "sm_80": {"integer": "m16n8k32", "half": "m16n8k16"},
    "sm_90": {"integer": "m16n8k32", "half": "m16n8k16"},
}
"""What multiplies matrices of integers and of f16."""
OVERLAPPING = ("linear", "pointwise", "convolution", "half linear", "half convolution")
"""Kernels whose operands both have runs that cp.async can copy, and whose borders are zeros."""
SHORT = Sample("linear_integer", (zeros("u8", 64, 12), zeros("i8", 64, 12)), {"x_zero_point": 7})


def ptx_of(sample: Sample, target: Target, folder: Path) -> str:
    """PTX of the operation's kernel."""
    graph, _ = graph_of([sample], constants([sample]))
    emitted = emit(graph, target, schedule_cuda, lambda _: None)
    (kernel,) = (item for item in emitted.module.functions.values() if isinstance(item, tvm.tirx.PrimFunc))
    source = folder / "kernel.cu"

    def keep(code: str, _: object) -> str:
        source.write_text(code)
        return code

    tvm_ffi.register_global_func(CALLBACK, keep, override=True)
    try:
        with tvm.transform.PassContext(opt_level=3, config=OPTIONS_BY_KIND["cuda"]):
            build_kernel(kernel.with_attr("global_symbol", "main"), tvm_target(target))
    finally:
        tvm_ffi.remove_global_func(CALLBACK)
    command = ["nvcc", "-ptx", f"-arch={target.device_arch}", "-o", str(folder / "kernel.ptx"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "kernel.ptx").read_text()


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("name", SAMPLES)
def test_matrices_are_multiplied(name: str, architecture: str, tmp_path: Path) -> None:
    kind = "half" if "half" in name else "integer"
    ptx = ptx_of(SAMPLES[name], get_target(f"cuda:{architecture}"), tmp_path)
    assert f"mma.sync.aligned.{SHAPES[architecture][kind]}.row.col" in ptx
    assert "ldmatrix.sync.aligned.m8n8.x4.shared.b16" in ptx
    assert ("cp.async" in ptx) == (architecture != "sm_75" and name in OVERLAPPING)


@pytest.mark.parametrize("architecture", SHAPES)
def test_four_products_at_a_time(architecture: str, tmp_path: Path) -> None:
    """Where sums are too short for a matrix instruction."""
    assert "dp4a.u32.s32" in ptx_of(SHORT, get_target(f"cuda:{architecture}"), tmp_path)
