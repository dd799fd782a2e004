"""The order in which a compiled graph calls its kernels, as data: what the VM's `main` does, for other executors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from whet.ir.graph import Operation, Value
from whet.passes.quantization.coverage import precision_of
from whet.runtime import manifest

Operand: TypeAlias = Value | str
"""A value of the graph, or a weight by its key."""


@dataclass(frozen=True, eq=False)
class KernelCall:
    """One call: kernels take their arguments, then the sizes of symbolic dimensions, then the results to fill."""

    kernel: str
    arguments: tuple[Operand, ...]
    symbols: tuple[str, ...]
    results: tuple[Value, ...]
    operations: tuple[Operation, ...]
    anchor: Operation
    """The operation that the kernel is arranged around."""


@dataclass(frozen=True, eq=False)
class View:
    """The same memory under another shape."""

    source: Operand
    result: Value


Step: TypeAlias = KernelCall | View
Steps: TypeAlias = Sequence[Step]


def describe_calls(steps: Steps, schedules: Mapping[str, str]) -> list[manifest.KernelCall]:
    """What a bundle says of its kernels. `schedules` has the rule that scheduled each, by its name."""
    makers: dict[Operand, int] = {}
    described: list[manifest.KernelCall] = []
    for step in steps:
        if isinstance(step, View):
            if step.source in makers:
                makers[step.result] = makers[step.source]
            continue
        reads = {makers[operand] for operand in step.arguments if operand in makers}
        makers |= dict.fromkeys(step.results, len(described))
        described.append(
            manifest.KernelCall(
                step.kernel,
                tuple(operation.name for operation in step.operations),
                step.anchor.location.module,
                precision_of(step.anchor),
                schedules[step.kernel],
                tuple(sorted(reads)),
            )
        )
    return described
