"""A graph as a torch module: the constants that its layers use as weights are the parameters."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from whet.errors import PassError
from whet.ir.graph import Graph, Operation, Value
from whet.ir.interpreter import Interpreter
from whet.passes.recovery.distributed import Processes
from whet.passes.recovery.forms import training_forms
from whet.passes.recovery.image_layout import FORMS, arranged_inputs, filter_format, is_filter
from whet.passes.recovery.widen import narrowed, widened
from whet.runtime.structure import unflatten

PARAMETERS: Final[Mapping[str, tuple[int, ...]]] = {
    "linear": (1, 2),
    "conv": (1, 2),
    "conv_transpose": (1, 2),
    "matmul": (0, 1),
    "batch_norm": (3, 4),
    "layer_norm": (1, 2),
    "rms_norm": (1,),
    "group_norm": (1, 2),
    "take": (0,),
    "lstm": (3, 4, 5, 6, 7),
    "gru": (2, 3, 4, 5),
    "rnn": (2, 3, 4, 5),
}
"""Operation -> its operands that are learned. A constant elsewhere (a mask, a table of positions) may be anything."""

STATISTICS: Final[Mapping[str, tuple[int, ...]]] = {"batch_norm": (1, 2)}
"""Operation -> its operands that training estimates, without a gradient."""


class TrainableGraph(nn.Module):
    """Computes a graph with tensors of its own in place of the constants that are trained.

    Weights of two-dimensional convolutions, and their inputs, are kept in the memory format that CPU kernels run
    fastest on, and filled up with channels of zeros that stay zero (`widened`). f16 and bf16 weights are trained in
    f32. The gradient of a codebook's entry is averaged over the elements that share it, so that one step is the step
    of the separate elements, projected back onto shared values: what is a good learning rate for the weights is one
    for the codebook.

    Args:
        graph: it stays as it is, and must live as long as this; `original` afterwards, `graph` being what is computed.
        trainable: patterns (fnmatch) of names of constants, of their keys, or of module paths that use them: those
            alone are trained, any float constant among them. Empty: what layers use as weights (PARAMETERS).
        exclude: patterns of what is not trained.
        freeze_batch_norm: normalize by the running statistics, and leave them alone.
        processes: which train together.
        learned: names of further constants to train (learned quantization steps).

    Raises PassError for a pattern that matches nothing, and where nothing is left to train.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        trainable: Sequence[str] = (),
        exclude: Sequence[str] = (),
        freeze_batch_norm: bool = False,
        processes: Processes | None = None,
        learned: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.original = graph
        self.graph = graph = widened(graph)
        values = _selected(graph, trainable, exclude, frozenset(learned))
        if not values:
            raise PassError("nothing to train: no layer has floating-point weights that trainable= and exclude= leave")
        self.names = [value.name for value in values]
        self.layout = layout = filter_format(graph)
        self.tensors = nn.ParameterList([nn.Parameter(_own(value, layout)) for value in values])
        self.dtypes = {value.name: value.type.dtype.torch for value in values}
        self.statistics = {} if freeze_batch_norm else {item.name: _own(item, layout) for item in _statistics(graph)}
        self.interpreter = Interpreter(graph, evaluators=training_forms(processes or Processes(), freeze_batch_norm))
        _average_gradients_of_codebooks(values, self.tensors)

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter in the place of the constant `name`."""
        return dict(self.named_tensors())[name]

    def named_tensors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name of the constant, parameter)."""
        return zip(self.names, self.tensors, strict=True)

    def overrides(self) -> dict[str, Tensor]:
        """Tensors for `Interpreter`, by constant: parameters in the constant's dtype, and statistics."""
        cast = {name: tensor.to(self.dtypes[name]) for name, tensor in self.named_tensors()}
        return cast | self.statistics

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The graph's outputs for a batch; every batch starts from the initial state."""
        self.interpreter.reset()
        self.interpreter.overrides = self.overrides()
        return self.interpreter(*arranged_inputs(self.layout, inputs))

    def structured(self, outputs: Sequence[Tensor]) -> Any:
        """Outputs in the structure of the model's result."""
        if self.graph.output_structure is None:
            return outputs[0] if len(outputs) == 1 else tuple(outputs)
        return unflatten(self.graph.output_structure, outputs)

    def result(self, overrides: Mapping[str, Tensor]) -> tuple[Graph, int]:
        """A new graph with `overrides` as constants, and how many of them differ from this graph's."""
        clone, changed = self.original.clone(), 0
        for value in clone.constants:
            if value.name not in overrides:
                continue
            assert value.producer is not None and value.constant is not None
            tensor = narrowed(overrides[value.name], value.constant.shape)
            if torch.equal(tensor, value.constant):
                continue
            value.producer.attributes["tensor"] = tensor.detach().clone(memory_format=torch.contiguous_format)
            changed += 1
        return clone, changed


def _own(value: Value, layout: torch.memory_format) -> Tensor:
    """A copy to train: f32 at least, filters in the memory format `layout`."""
    assert value.constant is not None
    tensor = value.constant.detach()
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
    return tensor.contiguous(memory_format=layout if is_filter(value) else torch.contiguous_format)


def _selected(graph: Graph, trainable: Sequence[str], exclude: Sequence[str], learned: frozenset[str]) -> list[Value]:
    candidates = [value for value in graph.constants if value.type.dtype.is_float and value.type.numel != 0]
    fixed = {value.name for value in _statistics(graph)}
    candidates = [value for value in candidates if value.name not in fixed]
    layers = {value.name for value in _weights(graph)}
    named = {value.name: _known_as(value) for value in candidates}
    wanted = _matching(named, trainable, "trainable") if trainable else layers
    unwanted = _matching(named, exclude, "exclude")
    chosen = (wanted - unwanted) | learned
    return [value for value in candidates if value.name in chosen]


def _matching(named: Mapping[str, frozenset[str]], patterns: Sequence[str], what: str) -> set[str]:
    if isinstance(patterns, str):
        raise PassError(f"{what} is a tuple of patterns, not the one string {patterns!r}: write ({patterns!r},)")
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name, aliases in named.items() if any(fnmatch.fnmatch(alias, pattern) for alias in aliases)}
        if not hits:
            known = ", ".join(sorted(named)[:12]) + (", ..." if len(named) > 12 else "")
            raise PassError(f"{what}: no float constant, and no module that uses one, is like {pattern}: {known}")
        found |= hits
    return found


def _known_as(value: Value) -> frozenset[str]:
    """Its name, its key, and the module paths that use it."""
    assert value.producer is not None
    modules = {operation.location.module for operation in _users(value)}
    return frozenset({value.name, value.producer.attributes["key"], *modules} - {""})


def _users(value: Value) -> Iterator[Operation]:
    """Operations that use a constant, directly or in a stored form."""
    for operation in value.users:
        yield operation
        if operation.name in FORMS:
            yield from _users(operation.result)


def _weights(graph: Graph) -> Iterator[Value]:
    """Constants that layers learn, through their stored forms."""
    for value in _operands(graph, PARAMETERS):
        source: Value | None = value
        while source is not None and source.producer is not None and source.producer.name in FORMS:
            source = source.producer.operands[FORMS[source.producer.name]]
        if source is not None and source.constant is not None:
            yield source


def _statistics(graph: Graph) -> list[Value]:
    return [value for value in _operands(graph, STATISTICS) if value.constant is not None]


def _operands(graph: Graph, table: Mapping[str, tuple[int, ...]]) -> Iterator[Value]:
    for operation in graph.operations:
        for slot in table.get(operation.name, ()):
            value = operation.operands[slot] if slot < len(operation.operands) else None
            if value is not None:
                yield value


def _average_gradients_of_codebooks(values: Sequence[Value], tensors: Iterable[nn.Parameter]) -> None:
    for value, parameter in zip(values, tensors, strict=True):
        counts = _sharing(value)
        if counts is not None:
            parameter.register_hook(counts.reciprocal().mul)  # type: ignore[no-untyped-call]


def _sharing(value: Value) -> Tensor | None:
    """How many elements that a mask keeps share each entry of a codebook; None for what is none."""
    lookups = [operation for operation, index in value.uses if operation.name == "lookup" and index == 0]
    if not lookups:
        return None
    entries = value.type.static_shape[0]
    return sum((_occurrences(operation, entries) for operation in lookups), torch.zeros(entries)).clamp_min(1)


def _occurrences(lookup: Operation, entries: int) -> Tensor:
    indices = lookup.operand(1).constant
    if indices is None:
        return torch.zeros(entries)
    masks = [user.operand(1).constant for user in lookup.result.users if user.name == "masked"]
    if len(masks) == 1 and masks[0] is not None:
        indices = indices[masks[0]]
    return torch.bincount(indices.reshape(-1).int(), minlength=entries).float()
