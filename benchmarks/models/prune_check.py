"""Prunes one model in this process: `python -m benchmarks.models.prune_check NAME --json FILE`.

`benchmarks.prune_zoo` starts one such process a model, so that neither a crash nor a leak of one touches the next.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.models.case import ModelCase
from benchmarks.models.check import CheckResult, compare
from benchmarks.models.prune_cases import prune_cases
from benchmarks.models.prune_peer import PeerResult, prune_with_peer
from whet.frontend import import_model
from whet.ir import Graph, Interpreter, verify
from whet.passes import ConstantFolding, Context, StructuredPruning
from whet.passes.pruning.budget import flops, parameters
from whet.passes.pruning.structured import prunable_groups

LARGEST_WEIGHT = 1 << 28
"""Bytes."""


@dataclass
class PruneResult(CheckResult):
    """What became of one model; `error` is that of the compiled module against the interpreter.

    Attributes:
        groups: groups of units that depend on each other, of two units at least.
        pruned: how many of them lost units.
        parameters: fraction of the parameters that is left.
        flops: fraction of the FLOPs that is left.
        prune_seconds: wall time of the pass.
        peer: what torch-pruning made of the model; a PeerResult as a dictionary.
    """

    groups: int = 0
    pruned: int = 0
    parameters: float = 1.0
    flops: float = 1.0
    prune_seconds: float = 0.0
    peer: dict[str, object] = field(default_factory=dict)


def check_pruned(case: ModelCase, result: PruneResult, ratio: float, target: str) -> None:
    """Prune, verify, run in the interpreter; compile for `target` where it is not empty, and compare."""
    model, args, kwargs = case.build(), case.example_inputs(), case.example_kwargs()
    # standardized weights are computed in the model; what is pruned are the weights that the layers take
    graph = ConstantFolding(max_bytes=LARGEST_WEIGHT)(import_model(model, args, kwargs or None)).graph
    result.groups = sum(group.size > 1 for group in prunable_groups(graph))
    start = time.perf_counter()
    pruned = StructuredPruning(ratio=ratio, round_to=1).run(graph, Context())
    result.prune_seconds = time.perf_counter() - start
    verify(pruned.graph)
    result.pruned = pruned.changes["group pruned"]
    result.parameters = parameters(pruned.graph) / parameters(graph)
    result.flops = flops(pruned.graph) / flops(graph)
    inputs = [item for item in (*args, *kwargs.values()) if isinstance(item, torch.Tensor)]
    with torch.no_grad():
        expected = list(Interpreter(pruned.graph)(*inputs))
    result.reason = _reason(result, ratio, expected)
    if target and not result.reason:
        _compare_compiled(pruned.graph, inputs, expected, case, result, target)
    result.passed = not result.reason


def _reason(result: PruneResult, ratio: float, outputs: Sequence[torch.Tensor]) -> str:
    if result.pruned < result.groups:
        return f"{result.groups - result.pruned} of {result.groups} groups lost nothing"
    if max(result.parameters, result.flops) > 1 - ratio:
        return f"parameters {result.parameters:.3f}, FLOPs {result.flops:.3f} are left"
    if not all(bool(torch.isfinite(output).all()) for output in outputs if output.is_floating_point()):
        return "the pruned graph's outputs are not finite"
    return ""


def _compare_compiled(
    graph: Graph,
    inputs: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    case: ModelCase,
    result: PruneResult,
    target: str,
) -> None:
    import whet

    flat = graph.clone()
    flat.input_structure = flat.output_structure = None
    start = time.perf_counter()
    compiled = whet.optimize(flat, target=target)
    result.compile_seconds = time.perf_counter() - start
    outputs = compiled(*inputs)
    actual = [torch.as_tensor(item) for item in (outputs if isinstance(outputs, tuple | list) else (outputs,))]
    result.reason, result.error = compare(actual, expected, case.classifier)


def check(name: str, ratio: float, target: str, peer: bool) -> PruneResult:
    """Check one case; whatever it raises becomes the reason of its failure."""
    case = prune_cases()[name]
    result = PruneResult(case.name, case.source)
    try:
        check_pruned(case, result, ratio, target)
    except Exception as error:  # the zoo reports every kind of failure instead of stopping at the first
        result.passed = False
        frame = traceback.extract_tb(error.__traceback__)[-1]
        result.reason = f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
    found = prune_with_peer(case.build(), case.example_inputs(), case.example_kwargs(), ratio) if peer else PeerResult()
    result.peer = asdict(found)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune the model named on the command line and write its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--json", type=Path, required=True, help="where the result is written")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--target", default="", help="compile for it and compare with the interpreter")
    parser.add_argument("--peer", action="store_true", help="prune with torch-pruning too")
    options = parser.parse_args(arguments)
    result = check(options.name, options.ratio, options.target, options.peer)
    options.json.write_text(json.dumps(asdict(result)), encoding="utf-8")
    return 0 if result.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
