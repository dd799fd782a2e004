"""What a student learns from: the original graph, another graph, a torch module, or any callable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import PassError
from whet.ir.graph import Graph, Operation, Value
from whet.ir.interpreter import Interpreter
from whet.passes.base import Context
from whet.passes.canonicalize.canonicalize import Canonicalize
from whet.passes.recovery.image_layout import arranged_filters, arranged_inputs, filter_format
from whet.passes.recovery.objective import tensors_of
from whet.passes.recovery.widen import widened
from whet.runtime.structure import unflatten


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of a batch: its outputs, flat, and the features asked for, in order."""

    outputs: list[Tensor]
    features: list[Tensor]


class Teacher(ABC):
    """Answers batches; nothing of it is trained."""

    @abstractmethod
    def __call__(self, inputs: Sequence[Tensor]) -> Lesson:
        """The teacher's answer to the inputs of the student's graph."""


class Silent(Teacher):
    """No teacher, where labels alone count."""

    def __call__(self, inputs: Sequence[Tensor]) -> Lesson:
        return Lesson([], [])


class GraphTeacher(Teacher):
    """A graph, in the interpreter.

    Args:
        graph: the teacher.
        features: module paths or names of values whose tensors are asked for.

    Raises PassError for a feature that it has not.
    """

    def __init__(self, graph: Graph, features: Sequence[str]) -> None:
        # features are named by what canonicalization may merge
        graph = graph if features else widened(Canonicalize().run(graph, Context()).graph)
        self._watched = Watched(graph, features)
        self._layout = filter_format(graph)
        self._interpreter = Interpreter(graph, arranged_filters(graph, self._layout), hook=self._watched.hook)

    def __call__(self, inputs: Sequence[Tensor]) -> Lesson:
        """Raises InputError where it takes other inputs than the student."""
        with torch.no_grad():
            self._interpreter.reset()
            outputs = list(self._interpreter(*arranged_inputs(self._layout, inputs)))
            return Lesson(outputs, self._watched.take(inputs))


class CallableTeacher(Teacher):
    """A torch module, held in evaluation mode while it is asked, or any callable that takes the model's arguments.

    Args:
        model: the teacher.
        features: module paths (`get_submodule`) whose outputs are asked for; of torch modules only.
        structure: of the student's inputs (`Graph.input_structure`).

    Raises PassError for a feature that it has not.
    """

    def __init__(self, model: Callable[..., Any], features: Sequence[str], structure: Any) -> None:
        self.model = model
        self.structure = structure
        self.submodules = [_submodule(model, path) for path in features]

    def __call__(self, inputs: Sequence[Tensor]) -> Lesson:
        args, kwargs = (inputs, {}) if self.structure is None else unflatten(self.structure, inputs)
        found: dict[int, Tensor] = {}
        with torch.no_grad(), self._watching(found), _evaluating(self.model):
            outputs = tensors_of(self.model(*args, **kwargs))
        return Lesson(outputs, [found[index] for index in range(len(self.submodules))])

    @contextmanager
    def _watching(self, found: dict[int, Tensor]) -> Iterator[None]:
        def keep(index: int, module: nn.Module, inputs: Any, output: Any) -> None:
            found[index] = tensors_of(output)[0]

        handles = [item.register_forward_hook(partial(keep, index)) for index, item in enumerate(self.submodules)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode, and back to what it was, module by module."""
    trained = [module for module in model.modules() if module.training] if isinstance(model, nn.Module) else []
    for module in trained:
        module.training = False
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def _submodule(model: Any, path: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise PassError(f"features={path!r}: a {kind} shows no features; give the teacher as an nn.Module or a Graph")
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise PassError(f"features: the teacher has no module {path!r}: {error}") from error


class Watched:
    """The tensors of some values of a graph, while an interpreter computes it with `hook`.

    Args:
        graph: what is computed.
        features: names of values, or module paths: of a module, what its last operation gives.

    Raises PassError for a name that the graph has not.
    """

    def __init__(self, graph: Graph, features: Sequence[str]) -> None:
        self.values = [feature_value(graph, name) for name in features]
        self._inputs = {value: index for index, value in enumerate(graph.inputs)}
        self._found: dict[Value, Tensor] = {}

    def hook(self, operation: Operation, results: tuple[Tensor, ...]) -> None:
        """Keep what is watched."""
        for value, tensor in zip(operation.results, results, strict=True):
            if value in self.values:
                self._found[value] = tensor

    def take(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of the last call, in order, and forget them."""
        found, self._found = self._found, {}
        return [inputs[self._inputs[value]] if value in self._inputs else found[value] for value in self.values]


def feature_value(graph: Graph, name: str) -> Value:
    """The value called `name`, or what the last operation of the module `name` gives. Raises PassError."""
    for value in graph.values():
        if value.name == name:
            return value
    inside = [item for item in graph.operations if _within(item.location.module, name) and item.name != "constant"]
    if inside:
        return inside[-1].results[0]
    paths = sorted({item.location.module for item in graph.operations} - {""})
    known = ", ".join(paths[:12]) + (", ..." if len(paths) > 12 else "")
    raise PassError(f"features: the graph has no value and no module {name!r}; its modules are {known}")


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")
