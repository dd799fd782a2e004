"""Contractions by dot instructions, whole operations: exact with every instruction that this processor has."""

from __future__ import annotations

import pytest
import torch

from tests.backends.tvm.dot_cases import (
    BFLOAT_TARGETS,
    INTEGER_TARGETS,
    bfloat_samples,
    constants,
    exact,
    integer_samples,
)
from tests.backends.tvm.kernel_run import HOST
from tests.backends.tvm.one_op import graph_of, run
from tests.ir.samples import Sample
from whet.backends.tvm.emit import EmittedModule
from whet.ir.target import Target


def compiled(samples: list[Sample], target: Target) -> tuple[list[torch.Tensor], EmittedModule]:
    if not set(target.features) <= set(HOST.features):
        pytest.skip(f"this processor has not got {set(target.features) - set(HOST.features)}")
    return run(*graph_of(samples, constants(samples)), target)


# numerics: Q1, Q5
@pytest.mark.parametrize("target", INTEGER_TARGETS.values(), ids=INTEGER_TARGETS)
def test_integers_are_exact_over_their_whole_range(target: Target) -> None:
    samples = integer_samples()
    outputs, emitted = compiled(samples, target)
    wrong = [
        sample.id for sample, out in zip(samples, outputs, strict=True) if not torch.equal(out.long(), exact(sample))
    ]
    assert not wrong
    # a rule that declines would leave plain loops
    assert {kernel.schedule for kernel in emitted.kernels} <= {"contraction", "depthwise"}


# numerics: R5
@pytest.mark.parametrize("target", BFLOAT_TARGETS.values(), ids=BFLOAT_TARGETS)
def test_bf16_sums_are_f32(target: Target) -> None:
    """Sums that f32 holds and bf16 does not: rounded once, they are the reference's."""
    samples = bfloat_samples()
    outputs, emitted = compiled(samples, target)
    for sample, out in zip(samples, outputs, strict=True):
        assert torch.equal(out, exact(sample).to(torch.bfloat16)), sample
    assert {kernel.schedule for kernel in emitted.kernels} <= {"contraction", "depthwise"}
