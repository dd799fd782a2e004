"""The reference meaning of a graph: every operation's `evaluate`, in order. Differentiable, exact for
integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from whet.errors import InputError
from whet.ir.dimensions import DimRange, dim_symbols, format_dim, solve_dim, substitute
from whet.ir.graph import Graph, Operation, Value
from whet.ir.types import DType, TensorType

Hook = Callable[[Operation, tuple[torch.Tensor, ...]], None]

Evaluator = Callable[..., Any]
"""(operation, *operands, **attributes) -> result, or a tuple: another way to compute an operation."""


class Interpreter:
    """Runs a graph on torch tensors, in place of compiled code.

    Calling takes and returns flat tensors in the order of `graph.inputs` and `graph.outputs`; state lives in
    the interpreter until `reset`. A value is freed after its last use.

    Args:
        graph: what to run.
        overrides: tensors to use in place of constants, by value name (training replaces weights this way).
        hook: called after every operation with its results (calibration, numeric diffs).
        evaluators: by operation name, what computes it in place of its `evaluate` (training's batch norm).

    Raises InputError for an override that is no constant of the graph.
    """

    def __init__(
        self,
        graph: Graph,
        overrides: Mapping[str, torch.Tensor] | None = None,
        hook: Hook | None = None,
        evaluators: Mapping[str, Evaluator] | None = None,
    ) -> None:
        self.graph = graph
        self.overrides = dict(overrides or {})
        self.hook = hook
        self.evaluators = dict(evaluators or {})
        unknown = set(self.overrides) - {value.name for value in graph.constants}
        if unknown:
            raise InputError(f"override(s) {sorted(unknown)} are no constants of the graph")
        self._last_use = _last_uses(graph)
        self.reset()

    def reset(self) -> None:
        """State back to its initial values."""
        self.state = [slot.initial.clone() for slot in self.graph.state]

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One call. Raises InputError for a wrong number, shape or dtype of inputs."""
        bindings = bind_inputs(self.graph, inputs)
        environment: dict[Value, torch.Tensor] = dict(zip(self.graph.arguments, [*inputs, *self.state], strict=True))
        for index, operation in enumerate(self.graph.operations):
            results = self._run(operation, environment, bindings)
            environment.update(zip(operation.results, results, strict=True))
            if self.hook is not None:
                self.hook(operation, results)
            for value in self._last_use.get(index, ()):
                del environment[value]
        # Copies: an output or input may be the same tensor, and its owner may write to it.
        self.state = [environment[slot.output].detach().clone() for slot in self.graph.state]
        return tuple(environment[value] for value in self.graph.outputs)

    def _run(
        self, operation: Operation, environment: Mapping[Value, torch.Tensor], bindings: Mapping[str, int]
    ) -> tuple[torch.Tensor, ...]:
        if operation.name == "constant":
            override = self.overrides.get(operation.result.name)
            return (operation.attributes["tensor"] if override is None else override,)
        operands = [None if value is None else environment[value] for value in operation.operands]
        attributes = {key: substitute(value, bindings) for key, value in operation.attributes.items()}
        evaluator = self.evaluators.get(operation.name)
        evaluate = operation.definition.evaluate if evaluator is None else partial(evaluator, operation)
        try:
            result = evaluate(*operands, **attributes)
        except Exception as error:
            error.add_note(f"in {operation!r} at {operation.location}")
            raise
        return result if isinstance(result, tuple) else (result,)


def _last_uses(graph: Graph) -> dict[int, list[Value]]:
    position = {operation: index for index, operation in enumerate(graph.operations)}
    kept = set(graph.returns)
    last: dict[int, list[Value]] = {}
    for value in graph.values():
        if value in kept:
            continue
        born = -1 if value.producer is None else position[value.producer]
        end = max((position[user] for user, _ in value.uses), default=born)
        if end >= 0:
            last.setdefault(end, []).append(value)
    return last


def bind_inputs(graph: Graph, inputs: Sequence[torch.Tensor]) -> dict[str, int]:
    """The number of every dimension symbol, from the inputs' shapes. Raises InputError.

    A symbol need not be a dimension by itself: from 2*s0 + 1 = 9 follows s0 = 4.
    """
    if len(inputs) != len(graph.inputs):
        names = ", ".join(value.name for value in graph.inputs)
        raise InputError(f"the graph takes {len(graph.inputs)} input(s) ({names}), got {len(inputs)}")
    for value, tensor in zip(graph.inputs, inputs, strict=True):
        _check_input(value, tensor)
    bindings = _solve(graph, inputs)
    for value, tensor in zip(graph.inputs, inputs, strict=True):
        _check_sizes(value, tensor, bindings)
    for name, size in bindings.items():
        allowed = graph.dimensions.get(name, DimRange(0))
        if size not in allowed:
            raise InputError(f"{_place(graph, inputs, name, size)}, allowed are {allowed.words}")
    return bindings


def _place(graph: Graph, inputs: Sequence[torch.Tensor], name: str, size: int) -> str:
    """Which dimension of which input makes the symbol this size: "input 'x': dimension 0 (batch) is 70"."""
    places = (
        (value.name, index, dim, tensor.shape[index])
        for value, tensor in zip(graph.inputs, inputs, strict=True)
        for index, dim in enumerate(value.type.shape)
        if name in {item.name for item in dim_symbols(dim)}
    )
    # What is nothing but the symbol before what is computed from it.
    value, index, dim, extent = min(places, key=lambda place: format_dim(place[2]) != name)
    shown = f"input {value!r}: dimension {index} ({format_dim(dim)}) is {extent}"
    return shown if format_dim(dim) == name else f"{shown} and so {name} is {size}"


def _solve(graph: Graph, inputs: Sequence[torch.Tensor]) -> dict[str, int]:
    """Symbols from the dimensions that are nothing but one, then from those that leave one unknown, until
    none does.
    """
    waiting = [
        (dim, size)
        for value, tensor in zip(graph.inputs, inputs, strict=True)
        for dim, size in zip(value.type.shape, tensor.shape, strict=True)
        if not isinstance(dim, int)
    ]
    bindings: dict[str, int] = {}
    for dim, size in waiting:
        if not isinstance(dim, int) and dim.is_Symbol:
            bindings.setdefault(dim.name, size)
    while True:
        found = [item for dim, size in waiting if (item := solve_dim(dim, size, bindings)) is not None]
        if not found:
            return bindings
        bindings.setdefault(*found[0])


def _check_input(value: Value, tensor: Any) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"input {value.name!r} must be a tensor, got {type(tensor).__name__}")
    expected: TensorType = value.type
    try:
        actual = DType.of(tensor.dtype)
    except KeyError:
        raise InputError(f"input {value.name!r} must be {expected}, got dtype {tensor.dtype}") from None
    if actual.torch is not expected.dtype.torch or tensor.dim() != expected.rank:
        raise InputError(f"input {value.name!r} must be {expected}, got {actual.value}{list(tensor.shape)}")


def _check_sizes(value: Value, tensor: torch.Tensor, bindings: Mapping[str, int]) -> None:
    for index, (dim, size) in enumerate(zip(value.type.shape, tensor.shape, strict=True)):
        if not all(item.name in bindings for item in dim_symbols(dim)):
            raise InputError(
                f"input {value.name!r} must be {value.type}: dimension {index} is {size}, "
                f"which is {format_dim(dim)} for no integer"
            )
        wanted = substitute(dim, bindings)
        if wanted != size:
            raise InputError(
                f"input {value.name!r} must be {value.type}: dimension {index} is {size}, "
                f"not {format_dim(dim)}{'' if isinstance(dim, int) else f' = {wanted}'}"
            )
