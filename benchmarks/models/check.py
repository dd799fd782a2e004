"""Checks one model of the zoo in this process: `python -m benchmarks.models.check NAME --json FILE`.

`benchmarks.zoo` starts one such process a model, so that neither a crash nor a leak of one touches the next.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.models.case import ModelCase
from benchmarks.models.zoo_cases import all_cases
from whet.runtime.structure import StructuredOutput

STAGES = ("eager", "export", "compile")
"""What is checked: that eager float32 itself keeps the tolerance, that a model exports, that it compiles."""

TOLERANCE = 1e-4
"""Largest relative error ||out - reference|| / ||reference|| of a float32 model."""


@dataclass
class CheckResult:
    """What became of one model.

    Attributes:
        name: the case's name.
        source: the library it comes from.
        passed: whether every check held.
        reason: why not; empty when it passed.
        error: worst relative error over the floating-point outputs, or None where nothing was compared.
        reference: dtype in which the eager reference was evaluated.
        compile_seconds: wall time of export (stage `export`) or of `whet.optimize`.
        run_seconds: wall time of the first run of the compiled module.
        operators: multiset of the exported ATen operators (stage `export` only).
    """

    name: str
    source: str
    passed: bool = False
    reason: str = ""
    error: float | None = None
    reference: str = ""
    compile_seconds: float = 0.0
    run_seconds: float = 0.0
    operators: dict[str, int] = field(default_factory=dict)


def exported_operators(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, int]:
    """Count the operators of the exported graph, nested regions included, before any decomposition."""
    program = torch.export.export(model, args, dict(kwargs), strict=False)
    counts: Counter[str] = Counter()
    for module in program.graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        counts.update(str(node.target) for node in module.graph.nodes if node.op == "call_function")
    return dict(sorted(counts.items()))


def reference_outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Tensor], str]:
    """Run eager in float64, or in float32 where the model fixes a dtype; the tensors and the dtype used."""
    wide = copy.deepcopy(model).double()
    wide_args, wide_kwargs = pytree.tree_map(_to_double, (args, dict(kwargs)))
    with torch.inference_mode():
        try:
            return _tensors(wide(*wide_args, **wide_kwargs)), "float64"
        except (RuntimeError, TypeError):
            return _tensors(model(*args, **kwargs)), "float32"


def _to_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _tensors(outputs: Any) -> list[Tensor]:
    """The array leaves of an output of any structure; a compiled module may answer with numpy arrays."""
    tensors: list[Tensor] = []
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, StructuredOutput):
            tensors += _tensors(leaf.to_tuple())
        elif hasattr(leaf, "shape"):
            tensors.append(torch.as_tensor(leaf))
    return tensors


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected|| in float64; 0 when both are zero, infinite where not finite."""
    wide = expected.double()
    difference = float(torch.linalg.vector_norm(actual.double() - wide))
    scale = float(torch.linalg.vector_norm(wide))
    if not math.isfinite(difference):
        return math.inf
    return difference / scale if scale else difference


def compare(actual: Sequence[Tensor], expected: Sequence[Tensor], classifier: bool) -> tuple[str, float]:
    """The reason why `actual` is not `expected` (empty when it is), and the worst relative error."""
    if len(actual) != len(expected):
        return f"{len(actual)} outputs instead of {len(expected)}", math.inf
    worst = 0.0
    for index, (got, want) in enumerate(zip(actual, expected, strict=True)):
        if got.shape != want.shape:
            return f"output {index} has shape {tuple(got.shape)} instead of {tuple(want.shape)}", math.inf
        if not want.is_floating_point() and not want.is_complex():
            if not torch.equal(got.to(want.dtype), want):
                return f"integer output {index} differs", math.inf
            continue
        worst = max(worst, relative_error(got, want))
    if worst > TOLERANCE:
        return f"relative error {worst:.2e} is above {TOLERANCE:.0e}", worst
    if classifier and not torch.equal(actual[0].argmax(-1), expected[0].argmax(-1)):
        return "top-1 differs from eager", worst
    return "", worst


def check_eager(case: ModelCase, result: CheckResult) -> None:
    """Compare eager float32 with the reference: a model that fails here says nothing about a compiler."""
    model, args, kwargs = case.build(), case.example_inputs(), case.example_kwargs()
    expected, result.reference = reference_outputs(model, args, kwargs)
    start = time.perf_counter()
    with torch.inference_mode():
        actual = _tensors(model(*args, **kwargs))
    result.run_seconds = time.perf_counter() - start
    result.reason, result.error = compare(actual, expected, case.classifier)
    result.reason = result.reason or degenerate_output(expected)
    result.passed = not result.reason


def degenerate_output(outputs: Sequence[Tensor]) -> str:
    """The reason why these outputs would hide errors (empty when they would not): one of them is constant."""
    for index, output in enumerate(outputs):
        if output.is_floating_point() and output.numel() > 1 and bool(output.min() == output.max()):
            return f"output {index} is constant: its weights say nothing about a compiler"
    return ""


def check_export(case: ModelCase, result: CheckResult) -> None:
    """Only export the model, and record its operators."""
    model, args, kwargs = case.build(), case.example_inputs(), case.example_kwargs()
    start = time.perf_counter()
    with torch.no_grad():
        result.operators = exported_operators(model, args, kwargs)
    result.compile_seconds = time.perf_counter() - start
    result.passed = True


def check_compiled(case: ModelCase, result: CheckResult, target: str, backend: str) -> None:
    """Compile the model without any pass, run it, and compare with eager."""
    import whet

    model, args, kwargs = case.build(), case.example_inputs(), case.example_kwargs()
    expected, result.reference = reference_outputs(model, args, kwargs)
    extra: dict[str, Any] = {"example_kwargs": dict(kwargs)} if kwargs else {}
    start = time.perf_counter()
    compiled = whet.optimize(model, target=target, example_inputs=args, passes=(), backend=backend, **extra)
    result.compile_seconds = time.perf_counter() - start
    start = time.perf_counter()
    outputs = compiled(*args, **kwargs)
    result.run_seconds = time.perf_counter() - start
    result.reason, result.error = compare(_tensors(outputs), expected, case.classifier)
    result.passed = not result.reason


def check(name: str, stage: str, target: str, backend: str) -> CheckResult:
    """Check one case; whatever it raises becomes the reason of its failure."""
    case = all_cases()[name]
    result = CheckResult(case.name, case.source)
    stages: Mapping[str, Callable[[], None]] = {
        "eager": lambda: check_eager(case, result),
        "export": lambda: check_export(case, result),
        "compile": lambda: check_compiled(case, result, target, backend),
    }
    try:
        stages[stage]()
    except Exception as error:  # the zoo reports every kind of failure instead of stopping at the first
        result.passed = False
        frame = traceback.extract_tb(error.__traceback__)[-1]
        result.reason = f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the model named on the command line and write its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--json", type=Path, required=True, help="where the result is written")
    parser.add_argument("--stage", choices=STAGES, default="compile")
    parser.add_argument("--target", default="x86")
    parser.add_argument("--backend", default="tvm")
    options = parser.parse_args(arguments)
    result = check(options.name, options.stage, options.target, options.backend)
    options.json.write_text(json.dumps(asdict(result)), encoding="utf-8")
    return 0 if result.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
