"""nvcc makes four 8-bit products at a time out of the integer kernels for CUDA: dp4a is in the PTX."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import tvm
import tvm_ffi

from tests.backends.tvm.dot_cases import constants
from tests.backends.tvm.one_op import graph_of
from tests.backends.tvm.test_intrinsics import CONV, matmul, zeros
from tests.ir.samples import Sample
from whet.backends.tvm.cuda import schedule_cuda
from whet.backends.tvm.emit import emit
from whet.backends.tvm.nvcc import _CALLBACK
from whet.backends.tvm.pipeline import build_kernel
from whet.backends.tvm.targets import tvm_target
from whet.ir.target import Target, get_target

pytestmark = pytest.mark.cuda

FEWEST = 32
POINTWISE = {**CONV, "padding": ((0, 0), (0, 0))}
SAMPLES = {
    "linear": Sample("linear_integer", (zeros("u8", 64, 256), zeros("i8", 64, 256)), {"x_zero_point": 7}),
    "pointwise": Sample(
        "conv_integer", (zeros("i8", 1, 14, 14, 64), zeros("i8", 128, 64, 1, 1)), {**POINTWISE, "x_zero_point": -5}
    ),
    "activations": matmul("i8", "i8"),
}


def ptx_of(sample: Sample, target: Target, folder: Path) -> str:
    """PTX of the operation's kernel."""
    graph, _ = graph_of([sample], constants([sample]))
    emitted = emit(graph, target, schedule_cuda, lambda _: None)
    (kernel,) = (item for item in emitted.module.functions.values() if isinstance(item, tvm.tirx.PrimFunc))
    source = folder / "kernel.cu"

    def keep(code: str, _: object) -> str:
        source.write_text(code)
        return code

    tvm_ffi.register_global_func(_CALLBACK, keep, override=True)
    try:
        build_kernel(kernel.with_attr("global_symbol", "main"), tvm_target(target))
    finally:
        tvm_ffi.remove_global_func(_CALLBACK)
    command = ["nvcc", "-ptx", f"-arch={target.device_arch}", "-o", str(folder / "kernel.ptx"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "kernel.ptx").read_text()


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", SAMPLES)
def test_four_products_at_a_time(name: str, architecture: str, tmp_path: Path) -> None:
    assert ptx_of(SAMPLES[name], get_target(f"cuda:{architecture}"), tmp_path).count("dp4a") >= FEWEST
