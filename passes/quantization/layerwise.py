"""What layers read on the calibration data: their inputs as the rows of y = W x."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from whet.errors import PassError
from whet.ir.graph import Graph, Operation, Value
from whet.ir.ops.contraction import windows
from whet.passes.base import Context
from whet.passes.data import Batches
from whet.passes.quantization.calibration import watch
from whet.passes.quantization.rounding import LayerInputs, Rounding

CONTRACTIONS: Final = ("linear", "conv")
"""Operations that `layer_inputs` knows as y = W x."""

MEMORY: Final = 1 << 29
"""Bytes of second moments that are collected in one pass over the data; more layers take more passes."""

ROWS: Final = 8192
"""Rows a layer that its second moments are averaged over, spread evenly over the batches and drawn at random."""


def layer_inputs(
    graph: Graph,
    layers: Sequence[Operation],
    context: Context,
    *,
    second: bool = True,
    rows: int = ROWS,
    memory: int = MEMORY,
) -> Iterator[tuple[Operation, LayerInputs]]:
    """Each layer (an operation of CONTRACTIONS in `graph`) with the mean and second moments of what it reads.

    Layers that read one value in one way share their moments, and come one after the other. At most `memory` bytes of
    moments are held at once (one layer's, if those are more): the data is run through the interpreter as often as
    that takes. What is observed is the graph as it was at the first step: edits between steps are not seen.

    Args:
        graph: what to run.
        layers: of it.
        context: for its calibration data, seed and progress.
        second: whether second moments are wanted; else `gram` is empty, [G, 0, 0].
        rows: drawn for each layer, at random, in all.
        memory: bytes of second moments at once.

    Raises PassError as `watch` does.
    """
    graph, originals = graph.clone(), graph.operations
    twins = dict(zip(originals, graph.operations, strict=True))
    views: dict[_View, list[Operation]] = {}
    for layer in layers:
        views.setdefault(_view(twins[layer], second), []).append(layer)
    if not views:
        return
    batches = sum(1 for _ in Batches(context.calibration, graph))
    quota = max(1, math.ceil(rows / max(batches, 1)))
    for chunk in _chunks(list(views), memory):
        moments = {view: _Moments(view, quota, context.seed) for view in chunk}
        _collect(graph, moments, context)
        for view in chunk:
            result = moments.pop(view).finish()
            for layer in views[view]:
                yield layer, result


def inputs_for(
    rounding: Rounding, bias_correction: bool, graph: Graph, layers: Sequence[Operation], context: Context
) -> Iterator[tuple[Operation, LayerInputs | None]]:
    """Each layer with what a rounding and bias correction look at; None for all where neither looks at the data.

    Raises PassError as `watch` does.
    """
    if not rounding.needs_inputs and not bias_correction:
        yield from ((layer, None) for layer in layers)
        return
    yield from layer_inputs(graph, layers, context, second=rounding.needs_inputs)


@dataclass(frozen=True)
class _View:
    """How a layer reads its input: the value, and for convolutions the windows."""

    value: Value
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    layout: str = ""
    columns: int = 0
    second: bool = True

    @property
    def moments(self) -> tuple[int, int, int]:
        """The shape of the second moments."""
        return (self.groups, self.columns, self.columns) if self.second else (self.groups, 0, 0)

    @property
    def bytes(self) -> int:
        return 4 * math.prod(self.moments)

    def rows(self, x: Tensor, limit: int, generator: torch.Generator) -> Tensor:
        """At most `limit` rows of the matrix that the weight multiplies, f32 [groups, rows, columns]."""
        if not self.kernel:
            flat = x.reshape(-1, self.columns)
            return flat[_choice(len(flat), limit, generator)].float()[None]
        patches = windows(x, self.kernel, self.stride, self.dilation, self.padding, self.layout)
        channels, positions = patches.shape[1], [patches.shape[0], *patches.shape[2 : 2 + len(self.kernel)]]
        chosen = _choice(math.prod(positions), limit, generator)
        # the channels move behind the positions: [rows, channels, *kernel]
        taken = patches.movedim(1, len(positions))[torch.unravel_index(chosen, positions)]
        grouped = taken.reshape(len(chosen), self.groups, channels // self.groups * math.prod(self.kernel))
        return grouped.transpose(0, 1).float()


def _view(layer: Operation, second: bool) -> _View:
    if layer.name not in CONTRACTIONS:
        raise PassError(f"{layer!r} is none of {', '.join(CONTRACTIONS)}: its inputs are no rows of y = W x")
    value, weight = layer.operand(0), layer.operand(1).type
    if layer.name == "linear":
        return _View(value, columns=int(weight.shape[1]), second=second)
    attributes: dict[str, Any] = layer.attributes
    return _View(
        value,
        groups=attributes["groups"],
        kernel=tuple(int(size) for size in weight.shape[2:]),
        stride=attributes["stride"],
        dilation=attributes["dilation"],
        padding=attributes["padding"],
        layout=attributes["layout"],
        columns=math.prod(int(size) for size in weight.shape[1:]),
        second=second,
    )


def _choice(count: int, limit: int, generator: torch.Generator) -> Tensor:
    if count <= limit:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:limit]


class _Moments:
    """Sums of x and x xᵀ over rows."""

    def __init__(self, view: _View, quota: int, seed: int) -> None:
        self.view = view
        self.quota = quota
        self.generator = torch.Generator().manual_seed(seed)
        self.rows = 0
        self.gram = torch.zeros(view.moments)
        self.sum = torch.zeros(view.groups, view.columns, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        rows = self.view.rows(x, self.quota, self.generator)
        if self.view.second:
            self.gram.baddbmm_(rows.transpose(1, 2), rows)
        self.sum += rows.double().sum(1)
        self.rows += rows.shape[1]

    def finish(self) -> LayerInputs:
        return LayerInputs(self.gram.div_(self.rows), (self.sum / self.rows).float(), self.rows)


def _chunks(views: Sequence[_View], memory: int) -> Iterator[list[_View]]:
    chunk: list[_View] = []
    for view in views:
        if chunk and sum(item.bytes for item in chunk) + view.bytes > memory:
            yield chunk
            chunk = []
        chunk.append(view)
    yield chunk


def _collect(graph: Graph, moments: dict[_View, _Moments], context: Context) -> None:
    by_value: dict[Value, list[_Moments]] = {}
    for view, item in moments.items():
        by_value.setdefault(view.value, []).append(item)

    def visit(value: Value, tensor: Tensor) -> None:
        for item in by_value[value]:
            item.add(tensor)

    watch(graph, by_value, context, visit, "observing what layers read")
