"""Capturing a model with torch.export, and bringing the program to the operators that have converters."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from whet.errors import CaptureError, WhetError
from whet.frontend.converters import converter_of
from whet.frontend.examples import find_example_inputs
from whet.frontend.importer import location_of
from whet.frontend.whole_ops import whole_recurrences

_MAX_ROUNDS = 8
_MODAL = (
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.modules.dropout._DropoutNd,
    torch.nn.RNNBase,
    torch.nn.MultiheadAttention,
)
"""Modules that compute something else in training mode."""
_WHOLE = frozenset(
    {
        torch.ops.aten.lstm.data,
        torch.ops.aten.gru.data,
        torch.ops.aten.rnn_tanh.data,
        torch.ops.aten.rnn_relu.data,
        torch.ops.aten.complex.default,
        torch.ops.aten.polar.default,
    }
)
"""Operators whose decompositions look at data (packed sequences) or fail: they are reported by their own
name."""
_DROPOUTS = frozenset(
    {
        torch.ops.aten.dropout.default,
        torch.ops.aten.dropout_.default,
        torch.ops.aten.alpha_dropout.default,
        torch.ops.aten.alpha_dropout_.default,
        torch.ops.aten.feature_dropout.default,
        torch.ops.aten.feature_dropout_.default,
        torch.ops.aten.feature_alpha_dropout.default,
        torch.ops.aten.feature_alpha_dropout_.default,
        torch.ops.aten.native_dropout.default,
    }
)
_NOISY = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
"""Loggers of torch that print what the raised error says too."""


def capture(
    model: torch.nn.Module | ExportedProgram | str | Path,
    example_inputs: Sequence[Any] | None,
    example_kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> ExportedProgram:
    """The model as an ExportedProgram. Raises CaptureError with the way out."""
    if isinstance(model, (str, Path)):
        model = _load(Path(model))
    if isinstance(model, ExportedProgram):
        _require_finite(model.named_parameters(), model.named_buffers())
        return model
    if not isinstance(model, torch.nn.Module):
        raise CaptureError(
            f"cannot optimize a {type(model).__name__}: pass an nn.Module, an ExportedProgram or the path of "
            f"a .pt2 file"
        )
    _require_evaluation_mode(model)
    _require_finite(model.named_parameters(), model.named_buffers())
    args, kwargs = _call(model, example_inputs, example_kwargs)
    try:
        with _quiet(), _unfused_attention(), whole_recurrences():
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:
        raise CaptureError(_explain(model, error)) from error


def _call(
    model: torch.nn.Module, inputs: Sequence[Any] | Mapping[str, Any] | None, kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the example call; a dict of inputs is passed by keyword, a lone tensor by position."""
    if inputs is None and not kwargs:
        return find_example_inputs(model)
    if isinstance(inputs, Mapping):
        return (), {**inputs, **(kwargs or {})}
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    return tuple(inputs or ()), dict(kwargs or {})


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Without the fused encoder layers of inference mode, whose parts no pass could reach."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _load(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise CaptureError(f"there is no file {path}")
    try:
        return torch.export.load(path)
    except Exception as error:
        raise CaptureError(f"{path} is not a program saved by torch.export.save: {error}") from error


def _require_evaluation_mode(model: torch.nn.Module) -> None:
    """Modules that behave differently in training count; a GraphModule has no mode of its own."""
    training = {name or type(model).__name__: module for name, module in model.named_modules() if module.training}
    whole = model.training and not isinstance(model, torch.fx.GraphModule)
    if whole or any(isinstance(module, _MODAL) for module in training.values()):
        names = list(training)
        raise CaptureError(
            f"the model is in training mode ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): "
            "call model.eval() first"
        )


def _require_finite(
    parameters: Iterable[tuple[str, torch.Tensor]], buffers: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Weights must be finite; a buffer may hold infinities (masks), not NaN."""
    for name, tensor in parameters:
        if _is_stored_float(tensor) and not bool(torch.isfinite(tensor).all()):
            raise CaptureError(
                f"parameter {name!r} has NaN or infinite elements: the weights are broken or diverged, load good ones"
            )
    for name, tensor in buffers:
        if _is_stored_float(tensor) and bool(torch.isnan(tensor).any()):
            raise CaptureError(f"buffer {name!r} has NaN elements: its statistics are broken, load good ones")


def _is_stored_float(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.device.type != "meta"


def _explain(model: torch.nn.Module, error: Exception) -> str:
    text = str(error)
    reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    data_dependent = "GuardOnDataDependentSymNode" in type(error).__name__ + text or "data-dependent" in text
    if data_dependent:
        return (
            f"{type(model).__name__} branches on the value of a tensor (data-dependent control flow), which "
            f"a graph "
            f"cannot hold: {text}\nRewrite the branch with torch.where, or optimize the part before and "
            f"after it."
        )
    if "Cache'> in output" in text:
        return (
            f"{type(model).__name__} returns its cache of keys and values, which is no tensor: pass use_cache=False, "
            "or keep the cache in buffers of the model"
        )
    if _passes_through(error, "torch/nn/modules/rnn.py", "torch/nn/utils/rnn.py"):
        return (
            f"torch.export could not capture a recurrent layer of {type(model).__name__}: {reason}\nIf the "
            f"model packs "
            "sequences (pack_padded_sequence), their layout depends on the data: give the layer the padded "
            "tensor"
        )
    return (
        f"torch.export could not capture {type(model).__name__}: {reason}\n{text}\n"
        "Check that the model runs on example_inputs, and that what varies is named in dynamic_shapes."
    )


def _passes_through(error: BaseException, *files: str) -> bool:
    """Whether a function of one of these files was running when the error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename.endswith(files) for frame in frames)


def functionalize(program: ExportedProgram) -> ExportedProgram:
    """The program without mutation, every operator having a converter where torch can decompose it into such.

    Raises CaptureError where torch cannot trace the program again.
    """
    _refuse_dropout(program)
    try:
        with _quiet():
            return _decompose(program)
    except WhetError:
        raise
    except Exception as error:
        raise CaptureError(f"torch could not make the exported program functional: {error}") from error


def _refuse_dropout(program: ExportedProgram) -> None:
    """A functional dropout whose `training` is true, whatever the mode of the model."""
    regions = [module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    for node in (node for region in regions for node in region.graph.nodes):
        if node.target in _DROPOUTS and node.args[1] and node.args[2]:
            raise CaptureError(
                f"dropout at {location_of(node)} is in training mode: call it with training=self.training, "
                f"and model.eval()"
            )


def _decompose(program: ExportedProgram) -> ExportedProgram:
    """First by torch's tables, then operators that are only composed of others, until nothing changes.

    torch inlines the regions of autocast and no_grad on the way, with the casts that autocast makes.
    """
    from torch._decomp import decomposition_table  # torch's whole table; loaded late, it is large

    tables = (torch.export.default_decompositions(), decomposition_table)
    rules = {op: table[op] for table in reversed(tables) for op in table if _decomposable(op)}
    program = program.run_decompositions(rules)
    for _ in range(_MAX_ROUNDS):
        missing = {node.target for node in program.graph.nodes if node.op == "call_function"}
        rules = {op: rule for op in missing if _decomposable(op) and (rule := _rule(op, *tables)) is not None}
        if not rules:
            break
        program = program.run_decompositions(rules)
    return program


def _decomposable(op: Any) -> bool:
    return isinstance(op, torch._ops.OpOverload) and converter_of(op) is None and op not in _WHOLE


def _rule(op: Any, *tables: Any) -> Any:
    for table in tables:
        if op in table:
            return table[op]
    return op.decompose if op._can_decompose() else None
