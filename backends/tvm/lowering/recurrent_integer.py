"""Recurrent layers with integer products: the output of each step is quantized for the next (numerics: Q12)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from whet.backends.tvm.intrinsics.instructions import DotInstruction, dot_instruction
from whet.backends.tvm.kernels.integer import compensation, recoding_offset
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.loops import load, nest, store
from whet.backends.tvm.lowering.quantized import rounded_product
from whet.backends.tvm.lowering.recurrent import Kind, Layer, Loop, gru_cell, lower_layer, lstm_cell, pack_gates
from whet.ir.graph import Operation
from whet.ir.types import DType

# Vectors of sums for one row of the batch: enough to hide the latency of a dot product.
_VECTORS = 8
_CODES = DType.I8


def pack_groups(weight: torch.Tensor, gates: int, block: int, instruction: DotInstruction) -> torch.Tensor:
    """i8 [gates · units, inputs] as [blocks, inputs / g, gates, block · g], zeros behind the last unit and input.

    g inputs that the instruction multiplies at once lie together; the dtype is the instruction's.
    """
    group = instruction.group
    blocked = torch.nn.functional.pad(pack_gates(weight, gates, block), (0, 0, 0, 0, 0, -weight.shape[1] % group))
    split = blocked.reshape(blocked.shape[0], -1, group, gates, block).permute(0, 1, 3, 4, 2)
    return split.reshape(*split.shape[:3], -1).to(getattr(torch, instruction.weight)).contiguous()


@dataclass(frozen=True)
class IntegerProduct:
    """f32(Σ_k q_k · R_k) · multiplier, with the codes q of the previous output in the instruction's dtype.

    Where that has another sign than the codes they are shifted by 128, which the sums of the weights take out again.
    """

    instruction: DotInstruction
    vectors: int = _VECTORS

    @property
    def offset(self) -> int:
        return recoding_offset(tvm_dtype(_CODES), self.instruction)

    def tensors(self, layer: Layer) -> dict[str, te.Tensor]:
        c, slot, gates, block = layer.c, layer.kind.weight, layer.kind.gates, layer.block
        weight, multiplier = layer.operation.operand(slot), layer.operation.operand(slot + 1)
        if weight.constant is None or multiplier.constant is None or c.number(self._scale(layer)) is None:
            raise c.unsupported("needs a constant weight, multiplier and scale")
        instruction, offset = self.instruction, self.offset
        recipe = f"{gates},{block},{instruction.group},{instruction.weight}"
        tensors = {
            "recurrent": c.packed(
                weight, f"gates integer[{recipe}]", lambda tensor: pack_groups(tensor, gates, block, instruction)
            ),
            "multiplier": layer.packed(multiplier, gates),
        }
        if offset:
            tensors["compensation"] = c.packed(
                weight,
                f"gates compensation[{gates},{block},{offset}]",
                lambda tensor: pack_gates(compensation(tensor, 0, offset)[:, None], gates, block),
            )
        return tensors

    def _scale(self, layer: Layer) -> Any:
        return layer.operation.operand(layer.kind.weight + 2)

    def scratch(self, layer: Layer, batch: Any) -> list[tuple[tuple[Any, ...], str]]:
        group = self.instruction.group
        return [((batch, -(-layer.outputs // group) * group), self.instruction.activation)]

    def publish(self, layer: Layer, loop: Loop, row: Any) -> None:
        """sat_i8(rne(h · f32(1 / scale))), 0 for NaN, shifted."""
        inverse = tirx.const(float(np.float32(1) / np.float32(layer.c.number(self._scale(layer)))), "float32")
        low, high = (tirx.const(float(bound), "float32") for bound in _CODES.integer_range)
        with nest([layer.outputs]) as (unit,):
            value = load(loop.hidden, [row, unit])
            held = tirx.max(tirx.min(tirx.nearbyint(value * inverse), high), low)
            code = tirx.Select(tirx.isnan(value), tirx.const(0, "float32"), held).astype("int32")
            store(loop.kept[0], [row, unit], (code + self.offset).astype(self.instruction.activation))

    def multiply(self, layer: Layer, loop: Loop, part: Any, members: list[Any]) -> Callable[[int, int, Any], Any]:
        gates, width = layer.kind.gates, layer.width
        sums = T.alloc_buffer((len(members), gates, layer.block), "int32", scope="local", layout=None)
        vectors = [
            (slot, gate, vector)
            for slot in range(len(members))
            for gate in range(gates)
            for vector in range(layer.block // width)
        ]
        for slot, gate, vector in vectors:
            store(sums, [slot, gate, _ramp(vector * width, width)], tirx.Broadcast(tirx.const(0, "int32"), width))
        with nest([loop.buffers["recurrent"].shape[1]]) as (k,):
            factors = [self._factor(loop.kept[0], row, k, width) for row in members]
            for slot, gate, vector in vectors:
                group = self.instruction.group
                weights = load(loop.buffers["recurrent"], [part, k, gate, _ramp(vector * width * group, width * group)])
                place = [slot, gate, _ramp(vector * width, width)]
                store(sums, place, self._accumulated(load(sums, place), factors[slot], weights))
        return lambda slot, gate, lane: self._real(layer, loop, part, gate, lane, load(sums, [slot, gate, lane]))

    def _factor(self, codes: Any, row: Any, k: Any, width: int) -> Any:
        """A group of codes in every lane."""
        group, dtype = self.instruction.group, self.instruction.activation
        if group == 1:
            return tirx.Broadcast(load(codes, [row, k]), width)
        bits = self.instruction.bits_of_group
        lane = tirx.reinterpret(f"int{bits}", load(codes, [row, _ramp(k * group, group)]))
        return tirx.reinterpret(f"{dtype}x{width * group}", tirx.Broadcast(lane, width))

    def _accumulated(self, total: Any, codes: Any, weights: Any) -> Any:
        instruction = self.instruction
        wide = f"int32x{instruction.lanes}"
        if instruction.llvm is None:
            return total + codes.astype(wide) * weights.astype(wide)
        if instruction.products is not None:
            products = tirx.call_llvm_pure_intrin(f"int16x{instruction.elements}", instruction.products, codes, weights)
            return total + tirx.call_llvm_pure_intrin(wide, instruction.llvm, products)
        if instruction.accumulates:
            return tirx.call_llvm_pure_intrin(wide, instruction.llvm, total, codes, weights)
        return total + tirx.call_llvm_pure_intrin(wide, instruction.llvm, codes, weights)

    def _real(self, layer: Layer, loop: Loop, part: Any, gate: int, lane: Any, total: Any) -> Any:
        place = [part, 0, gate, lane]
        if "compensation" in loop.buffers:
            total = total + load(loop.buffers["compensation"], place)
        return rounded_product(layer.c.target, total.astype("float32"), load(loop.buffers["multiplier"], place))


def _ramp(start: Any, length: int) -> Any:
    return tirx.Ramp(start, 1, length)


def _lower(kind: Kind) -> Callable[..., tuple[te.Tensor, ...]]:
    def lower(c: LoweringContext, operation: Operation) -> tuple[te.Tensor, ...]:
        return lower_layer(Layer(c, operation, kind, IntegerProduct(dot_instruction(c.target))))

    return lower


LOWERINGS: dict[str, Callable[..., Any]] = {
    "lstm_integer": _lower(Kind(4, 2, lstm_cell, weight=3)),
    "gru_integer": _lower(Kind(3, 1, gru_cell, weight=2, bias=5)),
}
