"""Capturing a model with torch.export, and bringing the program to the operators that have converters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from whet.errors import CaptureError
from whet.frontend.converters import CONVERTERS
from whet.frontend.examples import find_example_inputs
from whet.frontend.regions import inline_regions

_MAX_ROUNDS = 8


def capture(
    model: torch.nn.Module | ExportedProgram | str | Path,
    example_inputs: Sequence[Any] | None,
    example_kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> ExportedProgram:
    """The model as an ExportedProgram. Raises CaptureError with the way out."""
    if isinstance(model, (str, Path)):
        return _load(Path(model))
    if isinstance(model, ExportedProgram):
        return model
    if not isinstance(model, torch.nn.Module):
        raise CaptureError(
            f"cannot optimize a {type(model).__name__}: pass an nn.Module, an ExportedProgram or the path of a .pt2 file"
        )
    _require_evaluation_mode(model)
    _require_finite(model)
    if example_inputs is None and not example_kwargs:
        example_inputs, example_kwargs = find_example_inputs(model)
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(
                model,
                tuple(example_inputs or ()),
                dict(example_kwargs or {}),
                dynamic_shapes=dynamic_shapes,
                strict=False,
            )
    except Exception as error:
        raise CaptureError(_explain(model, error)) from error


def _load(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise CaptureError(f"there is no file {path}")
    try:
        return torch.export.load(path)
    except Exception as error:
        raise CaptureError(f"{path} is not a program saved by torch.export.save: {error}") from error


def _require_evaluation_mode(model: torch.nn.Module) -> None:
    # fx.GraphModule and exported modules have no mode of their own; their leaves are what counts.
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    modal = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd)
    modules = dict(model.named_modules())
    if training and (model.training or any(isinstance(modules.get(name), modal) for name in training)):
        raise CaptureError(
            f"the model is in training mode ({', '.join(training[:3])}{', ...' if len(training) > 3 else ''}): "
            "call model.eval() first"
        )


def _require_finite(model: torch.nn.Module) -> None:
    for name, tensor in model.named_parameters(remove_duplicate=True):
        if tensor.is_floating_point() and tensor.device.type != "meta" and not bool(torch.isfinite(tensor).all()):
            raise CaptureError(f"parameter {name!r} has NaN or infinite elements: the weights are broken or diverged")


def _explain(model: torch.nn.Module, error: Exception) -> str:
    text = str(error)
    reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    data_dependent = "GuardOnDataDependentSymNode" in type(error).__name__ + text or "data-dependent" in text
    if data_dependent:
        return (
            f"{type(model).__name__} branches on the value of a tensor (data-dependent control flow), which a graph "
            f"cannot hold: {text}\nRewrite the branch with torch.where, or optimize the part before and after it."
        )
    return (
        f"torch.export could not capture {type(model).__name__}: {reason}\n{text}\n"
        "Check that the model runs on example_inputs, and that what varies is named in dynamic_shapes."
    )


def functionalize(program: ExportedProgram) -> ExportedProgram:
    """The program without mutation, every operator having a converter where torch can decompose it into such."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = inline_regions(program.run_decompositions({}))
        table = torch.export.default_decompositions()
        from torch._decomp import decomposition_table  # torch's whole table; loaded late, it is large

        for _ in range(_MAX_ROUNDS):
            missing = {
                node.target
                for node in program.graph.nodes
                if node.op == "call_function"
                and isinstance(node.target, torch._ops.OpOverload)
                and node.target not in CONVERTERS
            }
            rules = {op: rule for op in missing if (rule := _rule(op, table, decomposition_table)) is not None}
            if not rules:
                return program
            program = inline_regions(program.run_decompositions(rules))
    return program


def _rule(op: Any, *tables: Any) -> Any:
    for table in tables:
        try:
            if op in table:
                return table[op]
        except KeyError:
            continue
    return op.decompose if op._can_decompose() else None
