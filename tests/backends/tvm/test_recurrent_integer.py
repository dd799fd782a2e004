"""Recurrent layers with integer products: exact for one step with every instruction, near over many."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.backends.tvm.one_op import graph_of, reference, relative_error, run
from tests.backends.tvm.test_kernels_integer import TARGETS, runs_here
from tests.ir.samples import Sample
from whet.backends.tvm.backend import build
from whet.backends.tvm.emit import emit
from whet.backends.tvm.intrinsics.instructions import INSTRUCTIONS, DotInstruction, dot_instruction
from whet.backends.tvm.lowering.recurrent_integer import pack_groups
from whet.backends.tvm.schedule.rules import schedule_cpu
from whet.ir.target import CATALOGUE, Target

GATES = {"lstm_integer": (4, 2), "gru_integer": (3, 1)}
TOLERANCE = 1e-2
"""numerics: Q12, T1."""


def sample(name: str, length: int, batch: int, units: int, step: float) -> Sample:
    """A layer over the whole range of codes, whose sums weigh `step` each; the first units start with odd values."""
    gates, states = GATES[name]
    generator = torch.Generator().manual_seed(units)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    hidden = torch.randint(-130, 131, (batch, units), generator=generator) / 127
    hidden[0, :4] = torch.tensor([0.5, 1.5, 300.0, math.nan]) / 127
    codes = torch.randint(-128, 128, (gates * units, units), generator=generator).to(torch.int8)
    codes[0] = 127
    reals = (randn(length, batch, gates * units) / 4, hidden, *([randn(batch, units)] if states == 2 else []))
    multiplier = (torch.rand(gates * units, generator=generator) + 0.5) * step
    return Sample(name, (*reals, codes, multiplier, torch.tensor(1 / 127)))


# numerics: Q12, Q5
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_one_step_is_exact_but_for_the_gates(target: Target) -> None:
    """A sum that is off by one would show as 2e-4 of a gate."""
    if not runs_here(target):
        pytest.skip("this processor has not got these instructions")
    samples = [sample(name, 1, batch, units, 2e-4) for name in GATES for batch, units in ((1, 5), (2, 37))]
    outputs, _ = run(*graph_of(samples), target)
    taken = iter(outputs)
    for item in samples:
        for ref in reference(item):
            # a GRU hands its own NaN on
            torch.testing.assert_close(next(taken), ref, rtol=0, atol=4e-6, equal_nan=True)


# numerics: Q12
def test_many_steps_stay_near() -> None:
    samples = [sample(name, 40, 2, 64, 4e-5) for name in GATES]
    for item in samples:
        item.operands[1][0, :4] = 0  # type: ignore[index]
    outputs, _ = run(*graph_of(samples))
    refs = [ref for item in samples for ref in reference(item)]
    assert max(relative_error(out, ref) for out, ref in zip(outputs, refs, strict=True)) <= TOLERANCE


@pytest.mark.parametrize("name", ["cortex-a76", "arm"])
def test_code_can_be_made_for_devices_that_are_not_here(name: str) -> None:
    graph, _ = graph_of([sample(name, 2, 3, 20, 1e-4) for name in GATES])
    target = CATALOGUE[name]
    assert build(emit(graph, target, schedule_cpu, lambda _: None).module, target) is not None


SIGNED = [instruction for instruction in INSTRUCTIONS if instruction.weight != "uint8"]


@pytest.mark.parametrize("instruction", SIGNED, ids=lambda item: item.name)
def test_packing_keeps_every_weight(instruction: DotInstruction) -> None:
    gates, block, units = 3, 8, 13
    weight = torch.randint(-128, 128, (gates * units, units)).to(torch.int8)
    packed = pack_groups(weight, gates, block, instruction)
    group = instruction.group
    split = packed.reshape(packed.shape[0], -1, gates, block, group)
    for gate, unit, column in ((0, 0, 0), (2, 12, 12), (1, 9, 5), (2, 7, 3)):
        found = split[unit // block, column // group, gate, unit % block, column % group]
        assert found == weight[gate * units + unit, column]
    assert int(packed.long().sum()) == int(weight.long().sum())


def test_the_widest_dot_product_is_used() -> None:
    assert dot_instruction(CATALOGUE["avx512-vnni"]).name == "vpdpbusd_512"
