"""Every operation, on every type that it takes, against the reference: many one-operation graphs in each module."""

from __future__ import annotations

from functools import cache

import pytest
from torch import Tensor

from tests.backends.tvm.cases import CASES, REMOVED
from tests.backends.tvm.one_op import graph_of, reference, relative_error, run, tolerance
from whet.backends.tvm.lowering import LOWERINGS
from whet.ir.ops import CATALOGUE

_IN_ONE_MODULE = 40
_GROUPS = [(family, start) for family, samples in CASES.items() for start in range(0, len(samples), _IN_ONE_MODULE)]


def test_every_operation_has_a_lowering() -> None:
    assert set(CATALOGUE) - set(LOWERINGS) == REMOVED


def test_every_lowering_has_a_case() -> None:
    tested = {sample.op for samples in CASES.values() for sample in samples}
    assert set(LOWERINGS) <= tested


@cache
def _computed(family: str, start: int) -> list[list[Tensor]]:
    samples = CASES[family][start : start + _IN_ONE_MODULE]
    outputs, _ = run(*graph_of(samples))
    taken = iter(outputs)
    return [[next(taken) for _ in reference(sample)] for sample in samples]


@pytest.mark.parametrize(("family", "start"), _GROUPS, ids=[f"{family}-{start}" for family, start in _GROUPS])
def test_compiled_operations_do_what_evaluate_does(family: str, start: int) -> None:
    wrong = []
    for sample, results in zip(CASES[family][start:], _computed(family, start), strict=False):
        for out, ref in zip(results, reference(sample), strict=True):
            error = relative_error(out, ref)
            if not error <= tolerance(sample, ref):
                wrong.append(f"{sample.id} {[str(type) for type in sample.types()]} {sample.attributes}: {error}")
    assert not wrong, "\n".join(wrong)
