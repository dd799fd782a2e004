"""Second moments of what layers read, on calibration data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import torch

from whet.errors import PassError
from whet.ir.graph import Graph, Operation, Value
from whet.ir.interpreter import Interpreter
from whet.ir.ops.contraction import windows
from whet.passes.base import Context
from whet.passes.data import Batches
from whet.passes.factorization.low_rank import Unit

_RIDGE: Final = 1e-6


def input_roots(graph: Graph, units: Sequence[Unit], context: Context) -> list[torch.Tensor]:
    """L [groups, n, n] of each unit: the Cholesky factor of E[x xᵀ] over all rows of all calibration batches.

    x is what one output is a product with: the features of a linear layer, the patches of a convolution, by group.
    Directions that never occur count 10⁻⁶ of the mean, so that L can be inverted.

    Raises PassError for no data, for NaN or infinities, and for layers that no batch reached.
    """
    totals: dict[Unit, torch.Tensor] = {}
    counts: Counter[Unit] = Counter()
    readers: dict[Value, list[tuple[Unit, Operation]]] = {}
    for unit in units:
        for layer in unit.layers:
            readers.setdefault(layer.operand(0), []).append((unit, layer))

    def see(value: Value, tensor: torch.Tensor) -> None:
        for unit, layer in readers.get(value, ()):
            rows = input_rows(layer, tensor).double()
            moment = rows.transpose(1, 2) @ rows
            totals[unit] = totals[unit] + moment if unit in totals else moment
            counts[unit] += rows.shape[1]

    def hook(operation: Operation, results: tuple[torch.Tensor, ...]) -> None:
        for value, tensor in zip(operation.results, results, strict=True):
            see(value, tensor)

    interpreter = Interpreter(graph, hook=hook)
    with torch.no_grad():
        for batch in Batches(context.calibration, graph):
            interpreter(*batch)
            for value, tensor in zip(graph.inputs, batch, strict=True):
                see(value, tensor)
    return [_root(unit.layers[0], totals.get(unit), counts[unit]) for unit in units]


def input_rows(layer: Operation, x: torch.Tensor) -> torch.Tensor:
    """[groups, rows, n]: every vector that the layer's weight, as a matrix [groups, m, n], is multiplied with."""
    if layer.name == "linear":
        return x.reshape(1, -1, x.shape[-1])
    attributes = layer.attributes
    kernel = layer.operand(1).type.static_shape[2:]
    geometry = (attributes["stride"], attributes["dilation"], attributes["padding"], attributes["layout"])
    patches = windows(x, kernel, *geometry)
    # [N, C, *positions, *kernel] -> [groups, N · positions, C / groups · kernel]
    spatial = len(kernel)
    groups = attributes["groups"]
    grouped = patches.reshape(patches.shape[0], groups, -1, *patches.shape[2:])
    order = [1, 0, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial)]
    width = grouped.shape[2] * math.prod(kernel)
    rows: torch.Tensor = grouped.permute(order).reshape(groups, -1, width)
    return rows


def _root(layer: Operation, total: torch.Tensor | None, count: int) -> torch.Tensor:
    if total is None or not count:
        raise PassError(f"calibration never reached the input of {layer!r} at {layer.location}")
    if not bool(torch.isfinite(total).all()):
        raise PassError(f"the input of {layer!r} at {layer.location} is not finite on the calibration data")
    moment = total / count
    mean = moment.diagonal(dim1=1, dim2=2).mean(1)
    ridge = torch.where(mean > 0, _RIDGE * mean, torch.ones_like(mean))
    root: torch.Tensor = torch.linalg.cholesky(
        moment + ridge[:, None, None] * torch.eye(moment.shape[1], dtype=moment.dtype)
    )
    return root
