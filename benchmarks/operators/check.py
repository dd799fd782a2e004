"""What becomes of an operator's samples: passed, failed, not applicable, or without converter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db

from benchmarks.operators.samples import Calls, Sample, load_samples
from whet.errors import UnsupportedOpError, WhetError
from whet.frontend.capture import capture, functionalize
from whet.frontend.importer import import_program
from whet.ir import Interpreter, verify

TOLERANCE = 1e-4
"""Largest relative error ||out - eager|| / ||eager|| of a floating-point result; integers are exact."""

Task = tuple[int, torch.dtype]
"""The index of an operator in the database, and the dtype of its samples."""

Runner = Callable[[Calls], tuple[Sequence[Tensor], frozenset[str]]]
"""Runs the calls in a backend: the results, and the ATen operators that were converted."""


@dataclass
class Row:
    """The samples of one operator with one dtype.

    Attributes:
        operator: its name in the operator database.
        variant: the name of its variant, mostly empty.
        dtype: of the samples.
        passed: number of samples with eager's result.
        failed: the reason of every failure.
        inapplicable: the reason of every sample that has no meaning in an inference graph.
        uncovered: the operators without converter that a sample needs, one entry a sample.
        converted: ATen operators that the samples, or others checked together with them, brought to a converter.
    """

    operator: str
    variant: str
    dtype: str
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    inapplicable: list[str] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)

    @property
    def applicable(self) -> int:
        return self.passed + len(self.failed)


def check_operators(tasks: Sequence[Task], limit: int, backend: str) -> list[Row]:
    """Try at most `limit` samples of each operator and dtype; all of them in one module, as far as that exports.

    Args:
        tasks: (index in the operator database, dtype).
        limit: most samples a task.
        backend: "reference" or "tvm".
    """
    run = run_compiled if backend == "tvm" else run_reference
    rows, attempts = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index, dtype in tasks:
            operator = op_db[index]
            row = Row(operator.name, operator.variant_test_name, str(dtype).removeprefix("torch."))
            samples = load_samples(index, dtype, limit)
            row.inapplicable = [sample.inapplicable for sample in samples if sample.inapplicable]
            attempts += [(sample, row) for sample in samples if not sample.inapplicable]
            rows.append(row)
        if attempts:
            _check(attempts, run)
    for row in rows:
        row.converted = sorted(set(row.converted))
    return rows


def _check(attempts: Sequence[tuple[Sample, Row]], run: Runner) -> None:
    """All calls at once; where that raises, each half of them, down to those that raise."""
    calls = Calls([sample for sample, _ in attempts])
    try:
        results, converted = run(calls)
    except Exception as error:  # every error is a result of this check
        if len(attempts) == 1:
            _classify(error, attempts[0][1])
            return
        middle = len(attempts) // 2
        _check(attempts[:middle], run)
        _check(attempts[middle:], run)
        return
    position = 0
    for sample, row in attempts:
        row.converted += converted
        count = len(sample.expected)
        reason = difference(results[position : position + count], sample.expected, sample.meaningless)
        position += count
        if reason:
            row.failed.append(reason)
        else:
            row.passed += 1


def _classify(error: Exception, row: Row) -> None:
    reason = inapplicable_reason(error)
    if reason:
        row.inapplicable.append(reason)
    elif isinstance(error, UnsupportedOpError) and not any("(" in name for name, _ in error.operators):
        row.uncovered.append(", ".join(sorted(name for name, _ in error.operators)))
    else:
        text = str(error).strip() or type(error).__name__
        row.failed.append(f"{type(error).__name__}: {' '.join(text.split())[:300]}")


_INAPPLICABLE = {
    "complex numbers": "complex numbers",
    "is in training mode": "random numbers",
    "exported in training mode": "training mode",
    "updates its running statistics": "training mode",
    "Pending unbacked symbols": "the result's shape depends on the data",
    "USER_INPUT_MUTATION": "writes into an argument",
    "DataDependentOutput": "the result's shape depends on the data",
    "DynamicOutputShape": "the result's shape depends on the data",
    "data-dependent": "the result's shape depends on the data",
    "depends on the data": "the result's shape depends on the data",
    "torch.complex": "complex numbers",
    "torch.uint16": "dtype uint16",
    "torch.uint32": "dtype uint32",
    "torch.uint64": "dtype uint64",
}


def inapplicable_reason(error: Exception) -> str:
    """Why a call has no meaning in an inference graph, from the error that refused it; empty if it failed."""
    if isinstance(error, UnsupportedOpError):
        tags = {tag for name, _ in error.operators for tag in _tags(name)}
        if torch.Tag.nondeterministic_seeded in tags:
            return "random numbers"
        if tags & {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}:
            return "the result's shape depends on the data"
    if not isinstance(error, WhetError):
        return ""
    text = f"{error} {type(error.__cause__).__name__}"
    return next((reason for part, reason in _INAPPLICABLE.items() if part in text), "")


def _tags(name: str) -> Sequence[Any]:
    namespace, *rest = name.split(" ")[0].split(".")
    if len(rest) != 2:
        return ()
    packet = getattr(getattr(torch.ops, namespace), rest[0], None)
    overload = getattr(packet, rest[1], None)
    return getattr(overload, "tags", ())


def run_reference(calls: Calls) -> tuple[Sequence[Tensor], frozenset[str]]:
    """Import and interpret: `whet.frontend.import_model` in its steps, to see the converted operators."""
    program = functionalize(capture(calls, calls.inputs, None, None))
    converted = frozenset(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    graph = import_program(program)
    verify(graph)
    results = Interpreter(graph)(*(tensor.clone() for tensor in calls.inputs))
    return results, converted


def run_compiled(calls: Calls) -> tuple[Sequence[Tensor], frozenset[str]]:
    """Compile for this machine and run."""
    import whet

    compiled = whet.optimize(calls, target="x86", example_inputs=calls.inputs)
    results = compiled(*calls.inputs)
    return [torch.as_tensor(result) for result in results], frozenset()


def difference(actual: Sequence[Tensor], expected: Sequence[Tensor], meaningless: Collection[int] = frozenset()) -> str:
    """How the results differ from eager's, if they do; those in `meaningless` only in shape and dtype."""
    if len(actual) != len(expected):
        return f"{len(actual)} results instead of {len(expected)}"
    for index, (got, want) in enumerate(zip(actual, expected, strict=True)):
        if got.shape != want.shape or got.dtype is not want.dtype:
            return f"result {index} is {_type(got)} instead of {_type(want)}"
        reason = "" if index in meaningless else _value_difference(got, want)
        if reason:
            return f"result {index}: {reason}"
    return ""


def _type(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _value_difference(got: Tensor, want: Tensor) -> str:
    if not want.is_floating_point():
        count = int((got != want).sum())
        return f"{count} of {want.numel()} elements differ" if count else ""
    got, want = got.double(), want.double()
    special = ~torch.isfinite(want)
    if not torch.equal(torch.isfinite(got), ~special):
        return "NaN or infinite elements are elsewhere"
    if not torch.allclose(got[special], want[special], equal_nan=True):
        return "NaN or infinite elements are others"
    finite = ~special
    error = float(torch.linalg.vector_norm(got[finite] - want[finite]))
    scale = float(torch.linalg.vector_norm(want[finite]))
    relative = error / scale if scale else error
    return "" if relative <= TOLERANCE else f"relative error {relative:.1e}"
