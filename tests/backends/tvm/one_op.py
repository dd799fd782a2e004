"""Graphs of many independent operations, compiled into one module and compared with what each `evaluate` gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import tvm
from torch import Tensor
from tvm import relax

from tests.ir.samples import Sample
from whet.backends.tvm.backend import build
from whet.backends.tvm.emit import EmittedModule, emit
from whet.backends.tvm.schedule.rules import schedule_cpu
from whet.ir import Builder, DType, Graph
from whet.ir.definition import InferError
from whet.ir.ops import CATALOGUE
from whet.ir.target import Target, get_target

CONSTANTS = {"lstm_integer": (3, 4, 5), "gru_integer": (2, 3, 4)}
"""Operands that must be constants, as quantization leaves them."""

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""numerics: T1."""


def graph_of(samples: Sequence[Sample], constants: Sequence[Sequence[int]] | None = None) -> tuple[Graph, list[Tensor]]:
    """One operation a sample; operands in the slots that `constants` (else `CONSTANTS`) lists are constants, the others
    inputs.
    """
    graph = Graph()
    builder = Builder(graph)
    feeds: list[Tensor] = []
    for number, sample in enumerate(samples):
        values = []
        for slot, (type, tensor) in enumerate(zip(sample.types(), sample.operands, strict=True)):
            if type is None or tensor is None:
                values.append(None)
            elif slot in (CONSTANTS.get(sample.op, ()) if constants is None else constants[number]):
                values.append(builder.constant(tensor, dtype=DType.I4 if type.dtype is DType.I4 else None))
            else:
                values.append(builder.input(f"x{len(feeds)}", type))
                feeds.append(tensor.contiguous())
        graph.outputs += builder.emit(sample.op, values, sample.attributes).results
    return graph, feeds


def run(graph: Graph, feeds: Sequence[Tensor], target: Target | str = "x86") -> tuple[list[Tensor], EmittedModule]:
    """Outputs of the compiled graph on this machine, as it is: nothing prepares it."""
    target = get_target(target)
    emitted = emit(graph, target, schedule_cpu, lambda name: None)
    machine = relax.VirtualMachine(build(emitted.module, target), tvm.cpu())
    arguments = [_to_tvm(tensor) for tensor in (*feeds, *emitted.weights.values())]
    results = machine["main"](*arguments)
    results = list(results) if isinstance(results, (list, tuple)) or hasattr(results, "__len__") else [results]
    return [torch.from_dlpack(item).clone() for item in results], emitted


def _to_tvm(tensor: Tensor) -> Any:
    if tensor.numel():
        # compiled code takes whole cache lines only, which a part of a tensor need not start at
        return tvm.runtime.from_dlpack(tensor if tensor.data_ptr() % 64 == 0 else tensor.clone())
    return tvm.runtime.empty(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def reference(sample: Sample) -> list[Tensor]:
    """What `evaluate` gives. Raises what it raises: torch has no arithmetic on some types that `infer` lets pass."""
    definition = CATALOGUE[sample.op]
    narrow = _narrow(sample) if sample.op in _STEPWISE else None
    operands = sample.operands if narrow is None else sample.cast(torch.float32).operands
    result = definition.evaluate(*operands, **definition.signature.with_defaults(sample.attributes))
    results = list(result) if isinstance(result, tuple) else [result]
    return results if narrow is None else [item.to(narrow) for item in results]


_STEPWISE = frozenset({"grid_sample", "resize", "lstm", "gru", "rnn"})
"""Of several steps, each of which torch rounds to the 16-bit type: compiled code rounds at the end (numerics: R5)."""


def _narrow(sample: Sample) -> torch.dtype | None:
    first = sample.operands[0]
    return first.dtype if first is not None and first.dtype in (torch.float16, torch.bfloat16) else None


def accepted(sample: Sample) -> bool:
    """Whether the operation takes operands of these types."""
    definition = CATALOGUE[sample.op]
    try:
        definition.result_types(sample.types(), definition.signature.with_defaults(sample.attributes))
        reference(sample)
    except (InferError, NotImplementedError, RuntimeError):
        return False
    return True


def relative_error(out: Tensor, ref: Tensor) -> float:
    """As docs/numerics.md has it (T1, T2); infinite where shapes, types or what is not finite differ."""
    if out.shape != ref.shape or out.dtype != ref.dtype:
        return math.inf
    if not ref.is_floating_point():
        return 0.0 if torch.equal(out, ref) else math.inf
    left, right = out.double(), ref.double()
    finite = torch.isfinite(right)
    if not torch.equal(finite, torch.isfinite(left)) or not torch.equal(left[~finite].isnan(), right[~finite].isnan()):
        return math.inf
    infinite = ~finite & ~right.isnan()
    if not torch.equal(left[infinite], right[infinite]):
        return math.inf
    norm, difference = right[finite].norm(), (left[finite] - right[finite]).norm()
    return float(difference / norm) if norm else float(difference)


def tolerance(sample: Sample, ref: Tensor) -> float:
    """Of the narrowest floating-point type that the operation passes through; integers are exact."""
    if not ref.is_floating_point():
        return 0.0
    types = [ref.dtype, *(item.dtype for item in sample.operands if item is not None and item.is_floating_point())]
    return max(TOLERANCES[dtype] for dtype in types)
