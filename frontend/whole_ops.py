"""Recurrent layers captured whole: torch.export would run them step by step, which fixes their length.

While a model is captured, torch's recurrent functions are replaced by operators of the namespace `whet`
with the same arguments, whose shapes are known without unrolling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

_ARGUMENTS: Final = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first"
)
_SCHEMAS: Final = {
    "lstm": f"lstm(Tensor input, Tensor[] hx, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    "gru": f"gru(Tensor input, Tensor hx, {_ARGUMENTS}) -> (Tensor, Tensor)",
    "rnn_tanh": f"rnn_tanh(Tensor input, Tensor hx, {_ARGUMENTS}) -> (Tensor, Tensor)",
    "rnn_relu": f"rnn_relu(Tensor input, Tensor hx, {_ARGUMENTS}) -> (Tensor, Tensor)",
}
_LIBRARY: Final = torch.library.Library("whet", "FRAGMENT")  # type: ignore[no-untyped-call]


def _states(hidden: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [hidden] if isinstance(hidden, Tensor) else list(hidden)


def _shapes(
    x: Tensor, hidden: Tensor | Sequence[Tensor], params: Sequence[Tensor], *options: Any
) -> tuple[Tensor, ...]:
    """What the layers return, by shape: the sequence with the outputs of both directions, and the last states."""
    *_, bidirectional, _ = options
    states = _states(hidden)
    width = states[0].shape[2] * (2 if bidirectional else 1)
    return x.new_empty((x.shape[0], x.shape[1], width)), *(state.new_empty(state.shape) for state in states)


def _define(name: str) -> None:
    _LIBRARY.define(_SCHEMAS[name])  # type: ignore[no-untyped-call]
    original = getattr(torch.ops.aten, name).input

    def run(*arguments: Any) -> Any:
        return original(*arguments)

    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"whet::{name}", _shapes, lib=_LIBRARY)


for _name in _SCHEMAS:
    _define(_name)

OPERATORS: Final = torch.ops.whet
"""The namespace of the operators of this file."""


@contextmanager
def whole_recurrences() -> Iterator[None]:
    """Within, nn.LSTM, nn.GRU and nn.RNN call the operators of this file, except for packed sequences."""
    functions = torch._VF
    originals = {name: getattr(functions, name) for name in _SCHEMAS}
    try:
        for name, original in originals.items():
            setattr(functions, name, _replacement(name, original))
        yield
    finally:
        for name in originals:
            delattr(functions, name)


def _replacement(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    whole = getattr(torch.ops.whet, name)

    def call(x: Tensor, second: Any, third: Any, *rest: Any) -> Any:
        # a packed sequence has its batch sizes second and its weights fourth
        return whole(x, second, third, *rest) if isinstance(third, list) else original(x, second, third, *rest)

    return call
