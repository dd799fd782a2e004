"""Code for CUDA devices is generated and linked on machines without one (nvcc is all that it needs)."""

from __future__ import annotations

import base64
import re
import zipfile
from pathlib import Path

import pytest
import torch

import whet
from tests.e2e.networks import Encoder, ResidualConvs, relative_error, seeded
from whet.backends.tvm.schedule.gpu.rules import GPU_RULES
from whet.passes import QuantizeStatic
from whet.runtime.bundle import read_manifest
from whet.runtime.device_code import _MARKER

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(600)]

ARCHITECTURES = ("sm_80", "sm_90")
FAT_BINARY = b"\x50\xed\x55\xba"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_convolutions(architecture: str, precision: str, tmp_path: Path) -> None:
    x = torch.randn(1, 3, 33, 33)
    passes = () if precision == "f32" else (QuantizeStatic(),)
    compiled = whet.optimize(
        seeded(ResidualConvs()), f"cuda:{architecture}", example_inputs=(x,), passes=passes, calibration=[(x,)]
    )
    _check_bundle(compiled, architecture, tmp_path / "m.whet")
    rules = {kernel.schedule for kernel in compiled.report().kernels}
    assert rules <= {rule.name for rule in GPU_RULES}, "one of TVM's own rules took a kernel"
    assert ("tensor_core" if precision == "int8" else "thread_tiles") in rules


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_transformer(architecture: str, tmp_path: Path) -> None:
    tokens, mask = torch.randint(0, 50, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    compiled = whet.optimize(seeded(Encoder()), f"cuda:{architecture}", example_inputs=(tokens, mask))
    _check_bundle(compiled, architecture, tmp_path / "m.whet")
    assert any(kernel.schedule == "thread_tiles" for kernel in compiled.report().kernels)


def _check_bundle(compiled: whet.CompiledModule, architecture: str, path: Path) -> None:
    compiled.save(path)
    target = read_manifest(path).target
    assert (target.device, target.device_arch) == ("cuda", architecture)
    with zipfile.ZipFile(path) as bundle:
        library = bundle.read("lib.so")
    texts = re.findall(re.escape(_MARKER.encode()) + rb"([A-Za-z0-9+/=]+)", library)
    code = b"".join(base64.b64decode(text) for text in texts)
    assert code.startswith(FAT_BINARY)
    assert b"__global__" not in library, "source was stored in the place of machine code"
    assert b"\x7fELF" in code


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no NVIDIA GPU, or no PyTorch with CUDA: nothing can run here"
)
@pytest.mark.parametrize("precision", ["f16", "f32"])
def test_on_a_gpu(precision: str) -> None:
    """What the GPU computes is what PyTorch computes on the processor."""
    major, minor = torch.cuda.get_device_capability()
    model, x = seeded(ResidualConvs()), torch.randn(1, 3, 33, 33)
    expected = model(x)
    if precision == "f16":
        model, x = model.half(), x.half()
    actual = torch.as_tensor(whet.optimize(model, f"cuda:sm_{major}{minor}", example_inputs=(x,))(x))
    assert relative_error(actual.float(), expected) <= {"f16": 1e-2, "f32": 1e-4}[precision]
