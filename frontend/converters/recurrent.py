"""LSTM, GRU and simple recurrent layers: one operation a layer and direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.errors import CaptureError
from whet.frontend import whole_ops
from whet.frontend.context import Context
from whet.ir.graph import Value

aten = torch.ops.aten
whole = whole_ops.OPERATORS

Layer = Callable[..., tuple[Value, ...]]
"""(x, states of one layer, its parameters) -> (every output, last states...)."""


def _stack(
    c: Context,
    x: Value,
    states: Sequence[Value],
    parameters: Sequence[Value],
    layers: int,
    directions: int,
    batch_first: bool,
    layer: Layer,
) -> tuple[Value, ...]:
    """All layers over x; `states` are [layers · directions, batch, features] each, and so are the last ones
    returned."""
    if batch_first:
        x = c.transpose(x, permutation=(1, 0, 2))
    size = len(parameters) // (layers * directions)
    last: list[list[Value]] = [[] for _ in states]
    for index in range(layers):
        outputs = []
        for direction in range(directions):
            place = index * directions + direction
            first = [_row(c, state, place) for state in states]
            sequence = c.flip(x, dims=(0,)) if direction else x
            output, *ends = layer(sequence, first, parameters[place * size : (place + 1) * size])
            outputs.append(c.flip(output, dims=(0,)) if direction else output)
            for collected, end in zip(last, ends, strict=True):
                collected.append(end)
        x = outputs[0] if len(outputs) == 1 else c.concat(*outputs, axis=2)
    if batch_first:
        x = c.transpose(x, permutation=(1, 0, 2))
    return x, *(_stacked(c, collected) for collected in last)


def _row(c: Context, state: Value, index: int) -> Value:
    """state[index]."""
    rows, *shape = state.type.shape
    if rows != 1:
        stops = (index + 1, *shape)
        state = c.slice(state, starts=(index, 0, 0), stops=stops, steps=(1, 1, 1))
    result: Value = c.reshape(state, shape=tuple(shape))
    return result


def _stacked(c: Context, rows: Sequence[Value]) -> Value:
    grown = [c.reshape(row, shape=(1, *row.type.shape)) for row in rows]
    result: Value = grown[0] if len(grown) == 1 else c.concat(*grown, axis=0)
    return result


def _require_no_dropout(c: Context, dropout: float, training: bool) -> None:
    if training and dropout:
        raise CaptureError(
            f"{c.target} at {c.builder.location} drops out with probability {dropout}: call model.eval() first"
        )


def _lstm(
    c: Context,
    x: Value,
    states: Sequence[Value],
    parameters: Sequence[Value],
    has_biases: bool,
    layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Value, ...]:
    """Parameters of a layer: W, R, then b and r if it has biases, then the projection if it has one."""
    _require_no_dropout(c, dropout, training)
    projected = states[0].type.shape[2] != states[1].type.shape[2]

    def layer(x: Value, first: Sequence[Value], weights: Sequence[Value]) -> tuple[Value, ...]:
        matrices, biases = weights[:2], weights[2:4] if has_biases else (None, None)
        result: tuple[Value, ...] = c.lstm(x, *first, *matrices, *biases, weights[-1] if projected else None)
        return result

    return _stack(c, x, states, parameters, layers, 1 + bidirectional, batch_first, layer)


def _single_state(name: str, **attributes: Any) -> Callable[..., tuple[Value, ...]]:
    """Layers whose only state is their last output."""

    def convert(
        c: Context,
        x: Value,
        state: Value,
        parameters: Sequence[Value],
        has_biases: bool,
        layers: int,
        dropout: float,
        training: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Value, ...]:
        _require_no_dropout(c, dropout, training)

        def layer(x: Value, first: Sequence[Value], weights: Sequence[Value]) -> tuple[Value, ...]:
            result: tuple[Value, ...] = getattr(c, name)(x, *first, *weights, **attributes)
            return result

        return _stack(c, x, [state], parameters, layers, 1 + bidirectional, batch_first, layer)

    return convert


_LAYERS: dict[str, Callable[..., Any]] = {
    "lstm": _lstm,
    "gru": _single_state("gru"),
    "rnn_tanh": _single_state("rnn", activation="tanh"),
    "rnn_relu": _single_state("rnn", activation="relu"),
}
CONVERTERS: dict[Any, Callable[..., Any]] = {
    **{getattr(aten, name).input: converter for name, converter in _LAYERS.items()},
    **{getattr(whole, name).default: converter for name, converter in _LAYERS.items()},
}
