"""Recurrent layers: one layer in one direction each, over whole sequences [length, batch, features].

Without `weight`, x are the inputs multiplied already: [length, batch, gates · units], the blocks of the gates one after
the other, bias included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from whet.ir.definition import (
    Axis,
    Cost,
    IndexMap,
    OpDefinition,
    Tie,
    moved_bytes,
    require,
    require_same_dtype,
)
from whet.ir.dimensions import Dim, product, same_dim, simplify_dim
from whet.ir.graph import Operation
from whet.ir.types import TensorType

_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


class Recurrent(OpDefinition):
    """Base: `gates` blocks of rows in the weights; the previous output is multiplied by `recurrent_weight`.

    Operands: x, the states, weight, recurrent_weight, bias, recurrent_bias, and what else a subclass has.
    """

    gates: int
    states: int
    """Number of states after x: hidden, and the LSTM's cell."""
    joined: bool = True
    """Whether only the sum of what comes from the inputs and from the previous output counts, in every gate."""

    def axes(self, operation: Operation) -> list[Tie]:
        """Unit h is row h of every gate's block, element h of every state, and column h of the recurrent
        weight.

        A projection (the LSTM's, its last operand) parts the outputs from the units.
        """
        weight, recurrent = 1 + self.states, 2 + self.states
        ties = [
            Tie(Axis(0, 0), Axis(-1, 0)),
            Tie(Axis(0, 1), Axis(-1, 1)),
            Tie(Axis(1, 0), Axis(0, 1)),
            Tie(Axis(1, 1), Axis(-1, 2)),
            Tie(Axis(-1, 1), Axis(-2, 0)),
            Tie(Axis(-1, 2), Axis(-2, 1)),
            Tie(Axis(recurrent, 1), Axis(-1, 2)),
        ]
        hidden = operation.operand(self.states).type.shape[1]
        if not isinstance(hidden, int):
            return ties
        unit = Axis(self.states, 1)
        blocks = [Axis(slot, 0) for slot in range(weight, weight + 4) if _present(operation, slot)]
        if _present(operation, weight):
            ties.append(Tie(Axis(0, 2), Axis(weight, 1)))
        else:
            blocks.append(Axis(0, 2))
        ties += [Tie(block, unit, IndexMap(modulo=hidden)) for block in blocks]
        if self.states == 2:
            ties += [Tie(Axis(2, 0), Axis(0, 1)), Tie(unit, Axis(-3, 1)), Tie(Axis(-3, 0), Axis(-1, 1))]
            projection = weight + 4
            if _present(operation, projection):
                ties += [Tie(unit, Axis(projection, 1)), Tie(Axis(projection, 0), Axis(-1, 2))]
            else:
                ties.append(Tie(unit, Axis(-1, 2)))
        return ties

    def cost(self, operation: Operation) -> Cost:
        length, batch = operation.operand(0).type.shape[:2]
        matrices = (1 + self.states, 2 + self.states, 5 + self.states)
        weights = [operation.operand(slot).type.numel for slot in matrices if _present(operation, slot)]
        total: Dim = sum(weights, start=0)
        return Cost(product([2, length, batch, total]), moved_bytes(operation))


def _present(operation: Operation, slot: int) -> bool:
    return slot < len(operation.operands) and operation.operands[slot] is not None


def _require_layer(
    gates: int,
    x: TensorType,
    hidden: TensorType,
    units: Dim,
    weight: TensorType | None,
    recurrent_weight: TensorType,
    bias: TensorType | None,
    recurrent_bias: TensorType | None,
) -> None:
    """The shapes of one layer. Raises InferError."""
    require_same_dtype(
        x=x,
        hidden=hidden,
        weight=weight,
        recurrent_weight=recurrent_weight,
        bias=bias,
        recurrent_bias=recurrent_bias,
    )
    require(x.rank == 3, f"x {x} must be [length, batch, features]")
    require(
        hidden.rank == 2 and same_dim(hidden.shape[0], x.shape[1]),
        f"hidden {hidden} must be [batch, outputs] of {x}",
    )
    rows = simplify_dim(gates * units)
    if weight is None:
        require(same_dim(x.shape[2], rows), f"x {x} without a weight must have {rows} features: {gates} gate(s)")
        require(bias is None, "x without a weight has its bias added already")
    for name, matrix, columns in (
        ("weight", weight, x.shape[2]),
        ("recurrent_weight", recurrent_weight, hidden.shape[1]),
    ):
        require(
            matrix is None
            or (matrix.rank == 2 and same_dim(matrix.shape[0], rows) and same_dim(matrix.shape[1], columns)),
            f"{name} {matrix} must be [{rows}, {columns}]: {gates} gate(s) of {units} units",
        )
    for name, vector in (("bias", bias), ("recurrent_bias", recurrent_bias)):
        fits = vector is None or (vector.rank == 1 and same_dim(vector.shape[0], rows))
        require(fits, f"{name} {vector} must have {rows} elements")


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """weight x + bias; x itself where it is multiplied already."""
    return x if weight is None else torch.nn.functional.linear(x, weight, bias)


def lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The new output (before a projection) and cell of the sums [N, 4H] of the gates i, f, g, o."""
    enter, forget, candidate, leave = gates.chunk(4, dim=-1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
    return torch.sigmoid(leave) * torch.tanh(cell), cell


def gru_step(inputs: Tensor, recurrent: Tensor, hidden: Tensor) -> Tensor:
    """The new output of what the gates r, z, n get from the input and from the previous output, [N, 3H] each."""
    reset_x, update_x, candidate_x = inputs.chunk(3, dim=-1)
    reset_h, update_h, candidate_h = recurrent.chunk(3, dim=-1)
    update = torch.sigmoid(update_x + update_h)
    candidate = torch.tanh(candidate_x + torch.sigmoid(reset_x + reset_h) * candidate_h)
    return (1 - update) * candidate + update * hidden


class Lstm(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; projections: Sak et al. 2014).

    i, f, g, o = split(W x_t + b + R h + r); c = σ(f) · c + σ(i) · tanh(g); h = P (σ(o) · tanh(c)), without
    `projection` P is the identity. x [T, N, I], hidden [N, O], cell [N, H], weight W [4H, I],
    recurrent_weight R [4H, O], bias b and recurrent_bias r [4H], projection P [O, H]. Results: every h [T, N,
    O], the last h [N, O], the last c [N, H].
    """

    name = "lstm"
    gates = 4
    states = 2

    def infer(
        self,
        x: TensorType,
        hidden: TensorType,
        cell: TensorType,
        weight: TensorType | None,
        recurrent_weight: TensorType,
        bias: TensorType | None = None,
        recurrent_bias: TensorType | None = None,
        projection: TensorType | None = None,
    ) -> tuple[TensorType, TensorType, TensorType]:
        require(cell.rank == 2 and same_dim(cell.shape[0], hidden.shape[0]), f"cell {cell} must be [batch, units]")
        require_same_dtype(x=x, cell=cell, projection=projection)
        units, outputs = cell.shape[1], hidden.shape[1]
        _require_layer(4, x, hidden, units, weight, recurrent_weight, bias, recurrent_bias)
        if projection is None:
            require(same_dim(units, outputs), f"hidden {hidden} and cell {cell} differ without a projection")
        else:
            fits = (
                projection.rank == 2 and same_dim(projection.shape[0], outputs) and same_dim(projection.shape[1], units)
            )
            require(fits, f"projection {projection} must be [{outputs}, {units}]")
        return TensorType((*x.shape[:2], outputs), x.dtype), hidden, cell

    def evaluate(
        self,
        x: Tensor,
        hidden: Tensor,
        cell: Tensor,
        weight: Tensor | None,
        recurrent_weight: Tensor,
        bias: Tensor | None = None,
        recurrent_bias: Tensor | None = None,
        projection: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        outputs = []
        for step in _affine(x, weight, bias):
            hidden, cell = lstm_step(step + _affine(hidden, recurrent_weight, recurrent_bias), cell)
            hidden = hidden if projection is None else _affine(hidden, projection, None)
            outputs.append(hidden)
        return sequence(outputs, x, hidden), hidden, cell


class Gru(Recurrent):
    """Gated recurrent unit (Cho et al. 2014), the reset gate after the product as in cuDNN.

    W_r, W_z, W_n are the blocks of W, and so for R, b, r: reset = σ(W_r x_t + b_r + R_r h + r_r), z likewise,
    n = tanh(W_n x_t + b_n + reset · (R_n h + r_n)), h = (1 - z) · n + z · h. x [T, N, I], hidden [N, H],
    weight W [3H, I], recurrent_weight R [3H, H], biases [3H]. Results: every h [T, N, H], the last h [N, H].
    """

    name = "gru"
    gates = 3
    states = 1
    joined = False

    def infer(
        self,
        x: TensorType,
        hidden: TensorType,
        weight: TensorType | None,
        recurrent_weight: TensorType,
        bias: TensorType | None = None,
        recurrent_bias: TensorType | None = None,
    ) -> tuple[TensorType, TensorType]:
        _require_layer(3, x, hidden, hidden.shape[-1], weight, recurrent_weight, bias, recurrent_bias)
        return TensorType((*x.shape[:2], hidden.shape[1]), x.dtype), hidden

    def evaluate(
        self,
        x: Tensor,
        hidden: Tensor,
        weight: Tensor | None,
        recurrent_weight: Tensor,
        bias: Tensor | None = None,
        recurrent_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        outputs = []
        for step in _affine(x, weight, bias):
            hidden = gru_step(step, _affine(hidden, recurrent_weight, recurrent_bias), hidden)
            outputs.append(hidden)
        return sequence(outputs, x, hidden), hidden


class Rnn(Recurrent):
    """Simple recurrence (Elman 1990): h = activation(W x_t + b + R h + r), activation "tanh" or "relu".

    x [T, N, I], hidden [N, H], weight W [H, I], recurrent_weight R [H, H], biases [H]. Results: every h, the
    last h.
    """

    name = "rnn"
    gates = 1
    states = 1

    def infer(
        self,
        x: TensorType,
        hidden: TensorType,
        weight: TensorType | None,
        recurrent_weight: TensorType,
        bias: TensorType | None = None,
        recurrent_bias: TensorType | None = None,
        *,
        activation: str = "tanh",
    ) -> tuple[TensorType, TensorType]:
        require(activation in _ACTIVATIONS, f"activation must be one of {list(_ACTIVATIONS)}, got {activation!r}")
        _require_layer(1, x, hidden, hidden.shape[-1], weight, recurrent_weight, bias, recurrent_bias)
        return TensorType((*x.shape[:2], hidden.shape[1]), x.dtype), hidden

    def evaluate(
        self,
        x: Tensor,
        hidden: Tensor,
        weight: Tensor | None,
        recurrent_weight: Tensor,
        bias: Tensor | None = None,
        recurrent_bias: Tensor | None = None,
        *,
        activation: str = "tanh",
    ) -> tuple[Tensor, Tensor]:
        outputs = []
        for step in _affine(x, weight, bias):
            hidden = _ACTIVATIONS[activation](step + _affine(hidden, recurrent_weight, recurrent_bias))
            outputs.append(hidden)
        return sequence(outputs, x, hidden), hidden


def sequence(outputs: list[Tensor], x: Tensor, hidden: Tensor) -> Tensor:
    """The outputs of all steps of x as one tensor, also where there is no step."""
    return torch.stack(outputs) if outputs else x.new_zeros((0, *hidden.shape))


DEFINITIONS: tuple[OpDefinition, ...] = (Lstm(), Gru(), Rnn())
