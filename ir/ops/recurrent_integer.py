"""Recurrent layers whose product with the previous output is one of 8-bit integers. See docs/numerics.md, Q12."""

from __future__ import annotations

import torch
from torch import Tensor

from whet.ir.definition import Axis, Cost, IndexMap, OpDefinition, Tie, moved_bytes, require
from whet.ir.dimensions import product, same_dim, simplify_dim
from whet.ir.graph import Operation
from whet.ir.ops.quantized import exact_int32, saturate
from whet.ir.ops.recurrent import gru_step, lstm_step, sequence
from whet.ir.types import DType, TensorType


class RecurrentInteger(OpDefinition):
    """Base: the previous output h becomes q = sat_i8(rne(h · f32(1 / scale))), anew in every step.

    Operands: x, the states, recurrent_weight, multiplier, scale, and what else a subclass has. x [T, N, gates · H] are
    the inputs multiplied already, bias included. The product with h is f32(Σ q · recurrent_weight) · multiplier, row by
    row; what the gates make of it is computed in f32, as are all states.
    """

    gates: int
    states: int

    def axes(self, operation: Operation) -> list[Tie]:
        """Unit u is row u of every gate's block, element u of every state, and column u of the recurrent weight."""
        weight, unit = 1 + self.states, Axis(-1, 2)
        ties = [
            Tie(Axis(0, 0), Axis(-1, 0)),
            Tie(Axis(0, 1), Axis(-1, 1)),
            Tie(Axis(weight, 1), unit),
            *(Tie(Axis(slot, 0), Axis(-1, 1)) for slot in (*range(1, weight), *range(-1 - self.states, -1))),
            *(Tie(Axis(slot, 1), unit) for slot in (*range(1, weight), *range(-1 - self.states, -1))),
        ]
        units = operation.operand(1).type.shape[1]
        if not isinstance(units, int):
            return ties
        blocks = [Axis(0, 2), Axis(weight, 0), Axis(weight + 1, 0)]
        if len(operation.operands) > weight + 3:
            blocks.append(Axis(weight + 3, 0))
        return ties + [Tie(block, unit, IndexMap(modulo=units)) for block in blocks]

    def cost(self, operation: Operation) -> Cost:
        length, batch = operation.operand(0).type.shape[:2]
        return Cost(product([2, length, batch, operation.operand(1 + self.states).type.numel]), moved_bytes(operation))


def _require_layer(
    gates: int,
    x: TensorType,
    hidden: TensorType,
    recurrent_weight: TensorType,
    multiplier: TensorType,
    scale: TensorType,
    **optional: TensorType | None,
) -> None:
    """The shapes and types of one layer. Raises InferError."""
    for name, real in {"x": x, "hidden": hidden, "multiplier": multiplier, "scale": scale, **optional}.items():
        require(real is None or real.dtype is DType.F32, f"{name} must be f32, got {real}")
    require(x.rank == 3 and hidden.rank == 2, f"x {x} must be [length, batch, rows], hidden {hidden} [batch, units]")
    require(same_dim(hidden.shape[0], x.shape[1]), f"hidden {hidden} must have the batch of x {x}")
    units = hidden.shape[1]
    rows = simplify_dim(gates * units)
    require(same_dim(x.shape[2], rows), f"x {x} must have {rows} features: {gates} gates of {units} units")
    fits = recurrent_weight.rank == 2 and same_dim(recurrent_weight.shape[0], rows)
    require(
        recurrent_weight.dtype is DType.I8 and fits and same_dim(recurrent_weight.shape[1], units),
        f"recurrent_weight {recurrent_weight} must be i8[{rows}, {units}]",
    )
    for name, vector in {"multiplier": multiplier, **optional}.items():
        fits = vector is None or (vector.rank == 1 and same_dim(vector.shape[0], rows))
        require(fits, f"{name} {vector} must have {rows} elements")
    require(scale.rank == 0, f"scale must be one number, got {scale}")


def _recurrent_product(hidden: Tensor, weight: Tensor, multiplier: Tensor, scale: Tensor) -> Tensor:
    """f32(Σ q · weight) · multiplier with the codes q of `hidden`: the sum is exact, in float64."""
    codes = saturate(torch.round(hidden * scale.reciprocal()), DType.I8)
    return exact_int32(codes.double() @ weight.double().T).float() * multiplier


class LstmInteger(RecurrentInteger):
    """`lstm` with the product R h of integers.

    x f32 [T, N, 4H], hidden and cell f32 [N, H], recurrent_weight i8 [4H, H], multiplier f32 [4H] (the scale of the
    hidden state times that of each row), scale f32 (of the hidden state). Results: every h f32 [T, N, H], the last h
    and the last c [N, H].
    """

    name = "lstm_integer"
    gates = 4
    states = 2

    def infer(
        self,
        x: TensorType,
        hidden: TensorType,
        cell: TensorType,
        recurrent_weight: TensorType,
        multiplier: TensorType,
        scale: TensorType,
    ) -> tuple[TensorType, TensorType, TensorType]:
        _require_layer(4, x, hidden, recurrent_weight, multiplier, scale)
        fits = cell.rank == 2 and all(map(same_dim, cell.shape, hidden.shape)) and cell.dtype is DType.F32
        require(fits, f"cell {cell} must be like hidden {hidden}")
        return TensorType((*x.shape[:2], hidden.shape[1]), DType.F32), hidden, cell

    def evaluate(
        self, x: Tensor, hidden: Tensor, cell: Tensor, recurrent_weight: Tensor, multiplier: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        outputs = []
        for step in x:
            gates = step + _recurrent_product(hidden, recurrent_weight, multiplier, scale)
            hidden, cell = lstm_step(gates, cell)
            outputs.append(hidden)
        return sequence(outputs, x, hidden), hidden, cell


class GruInteger(RecurrentInteger):
    """`gru` with the product R h of integers.

    x f32 [T, N, 3H], hidden f32 [N, H], recurrent_weight i8 [3H, H], multiplier f32 [3H] (the scale of the hidden state
    times that of each row), scale f32 (of the hidden state), recurrent_bias f32 [3H]. Results: every h f32 [T, N, H],
    the last h [N, H].
    """

    name = "gru_integer"
    gates = 3
    states = 1

    def infer(
        self,
        x: TensorType,
        hidden: TensorType,
        recurrent_weight: TensorType,
        multiplier: TensorType,
        scale: TensorType,
        recurrent_bias: TensorType | None = None,
    ) -> tuple[TensorType, TensorType]:
        _require_layer(3, x, hidden, recurrent_weight, multiplier, scale, recurrent_bias=recurrent_bias)
        return TensorType((*x.shape[:2], hidden.shape[1]), DType.F32), hidden

    def evaluate(
        self,
        x: Tensor,
        hidden: Tensor,
        recurrent_weight: Tensor,
        multiplier: Tensor,
        scale: Tensor,
        recurrent_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        outputs = []
        for step in x:
            recurrent = _recurrent_product(hidden, recurrent_weight, multiplier, scale)
            hidden = gru_step(step, recurrent if recurrent_bias is None else recurrent + recurrent_bias, hidden)
            outputs.append(hidden)
        return sequence(outputs, x, hidden), hidden


DEFINITIONS: tuple[OpDefinition, ...] = (LstmInteger(), GruInteger())
