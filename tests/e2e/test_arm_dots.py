"""Dot instructions of AArch64, run on emulated cores: whole operations over the whole range of integers, exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import whet
from tests.backends.tvm.dot_cases import NEOVERSE_N2, bfloat_samples, constants, exact, integer_samples
from tests.backends.tvm.one_op import graph_of
from tests.e2e.test_arm import run_on
from tests.ir.samples import Sample
from whet.ir import Builder, DType, Graph, TensorType
from whet.ir.target import CATALOGUE, Target

pytestmark = [pytest.mark.arm, pytest.mark.timeout(600)]

# No core that the emulator knows has i8mm and bf16: "max" has every feature, and shows numbers, not that a board runs.
CORES = {"cortex-a72": "cortex-a72", "cortex-a76": "cortex-a76", "neoverse-n2": "max"}
TARGETS = {"cortex-a72": CATALOGUE["cortex-a72"], "cortex-a76": CATALOGUE["cortex-a76"], "neoverse-n2": NEOVERSE_N2}


def on_device(samples: list[Sample], target: Target, arm_device: Path, folder: Path) -> list[torch.Tensor]:
    graph, feeds = graph_of(samples, constants(samples))
    whet.optimize(graph, target).save(folder / "m.whet")
    outputs, _ = run_on(CORES[target.name], arm_device, folder / "m.whet", feeds)
    return outputs


# numerics: Q1, Q5
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_integers_are_exact_over_their_whole_range(target: Target, arm_device: Path, tmp_path: Path) -> None:
    samples = integer_samples()
    outputs = on_device(samples, target, arm_device, tmp_path)
    wrong = [sample for sample, out in zip(samples, outputs, strict=True) if not torch.equal(out.long(), exact(sample))]
    assert not wrong


# numerics: R5
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_bf16_sums_are_f32(target: Target, arm_device: Path, tmp_path: Path) -> None:
    """Sums that f32 holds and bf16 does not: rounded once, they are the reference's. The device has no bf16 itself."""
    samples = bfloat_samples()
    graph, feeds = Graph(), []
    builder = Builder(graph)
    for sample, fixed in zip(samples, constants(samples), strict=True):
        values = []
        for slot, tensor in enumerate(sample.operands):
            if tensor is None:
                values.append(None)
            elif slot in fixed:
                values.append(builder.constant(tensor))
            else:
                feeds.append(tensor.float())
                wide = builder.input(f"x{len(feeds)}", TensorType.of(feeds[-1]))
                values.append(builder.emit("cast", [wide], {"dtype": DType.BF16}).result)
        result = builder.emit(sample.op, values, sample.attributes).result
        graph.outputs.append(builder.emit("cast", [result], {"dtype": DType.F32}).result)
    whet.optimize(graph, target).save(tmp_path / "m.whet")
    outputs, _ = run_on(CORES[target.name], arm_device, tmp_path / "m.whet", feeds)
    for sample, out in zip(samples, outputs, strict=True):
        assert torch.equal(out, exact(sample).to(torch.bfloat16).float()), sample
