"""Weights that a kernel reads in their stored form, integers and scales, and turns into numbers as it multiplies.

Only the integers are ever in memory: 8 bits a weight, or 4 (two a byte, neighbours along the contracted dimension, so
that the lanes of a vector stay neighbours too).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tvm import te, tirx

from whet.backends.tvm.kernels.linear import pack_linear_weight
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.elementwise import select, truth
from whet.backends.tvm.lowering.quantized import rounded_product
from whet.ir.graph import Operation, Value
from whet.ir.ops.contraction import CHANNELS_LAST
from whet.ir.types import DType

UNPACKING: Mapping[str, frozenset[str]] = {"cpu": frozenset({"linear", "conv"}), "cuda": frozenset()}
"""Kind of target -> operations whose lowering reads a stored weight (operand 1) by itself."""

_FORMS = ("dequantize", "dequantize_blocks")
_WEIGHT = 1


def read_in_kernels(operation: Operation, readers: Collection[str], returned: Collection[Value]) -> bool:
    """Whether every use of what `operation` dequantizes is the weight of one of `readers`, which unpack it."""
    if operation.name not in _FORMS or not _is_stored(operation) or operation.result in returned:
        return False
    uses = operation.result.uses
    return bool(uses) and all(slot == _WEIGHT and _unpacks(user, readers) for user, slot in uses)


def _unpacks(user: Operation, readers: Collection[str]) -> bool:
    return user.name in readers and user.attributes.get("layout", CHANNELS_LAST) == CHANNELS_LAST


def _is_stored(operation: Operation) -> bool:
    codes = operation.operand(0)
    if codes.type.dtype is DType.I32 or any(value and value.constant is None for value in operation.operands):
        return False
    axis = operation.attributes.get("axis")
    return operation.name == "dequantize_blocks" or operation.operand(1).type.rank == 0 or axis == 0


def stored_form(weight: Value) -> Operation | None:
    """The operation that dequantizes a constant, where `weight` is the result of one."""
    operation = weight.producer
    return operation if operation is not None and operation.name in _FORMS and _is_stored(operation) else None


def is_known(weight: Value) -> bool:
    """Whether the weight is packed at compile time: a constant, or a stored one."""
    return weight.constant is not None or stored_form(weight) is not None


def known_weight(
    c: LoweringContext, weight: Value, recipe: str, pack: Callable[[torch.Tensor], torch.Tensor], block: int | None
) -> Any:
    """What a kernel reads as its packed weight: a tensor, or a StoredWeight.

    Args:
        weight: a weight that `is_known`.
        recipe: names what `pack` does.
        pack: [out, ...] -> [out / block, ..., in, block], or [..., out] where `block` is None.
        block: output channels side by side.
    """
    operation = stored_form(weight)
    if operation is None:
        return c.packed(weight, recipe, pack)
    codes, scale = operation.operand(0), operation.operand(1)
    zero_point = operation.operands[2] if len(operation.operands) > 2 else None
    outputs, in_pairs = int(codes.type.shape[0]), codes.type.dtype is DType.I4 and block is not None

    def pack_codes(tensor: torch.Tensor) -> torch.Tensor:
        return pack_pairs(pack(tensor)) if in_pairs else pack(tensor)

    def pack_parameters(tensor: torch.Tensor) -> torch.Tensor:
        rows = tensor if tensor.dim() == 2 else tensor.reshape(-1, 1).expand(outputs, 1)
        return rows.T.contiguous() if block is None else pack_linear_weight(rows, block)

    parameters = f"parameters[{block}]"
    packed = c.packed(codes, f"{recipe} in pairs" if in_pairs else recipe, pack_codes)
    inner = list(pack(torch.empty(codes.type.static_shape, device="meta")).shape)
    return StoredWeight(
        packed,
        tuple(inner),
        c.packed(scale, parameters, pack_parameters),
        None if zero_point is None else c.packed(zero_point, parameters, pack_parameters),
        operation.attributes.get("group"),
        in_pairs,
        block is not None,
    )


def _dequantize_blocks(c: LoweringContext, operation: Operation) -> te.Tensor:
    """f32(x - zero_point) · scale, the difference in integers."""
    x, scale = operation.operand(0), operation.operand(1)
    zero_point = operation.operands[2] if len(operation.operands) > 2 else None
    group = operation.attributes["group"]
    c.tensor(x)

    def element(*index: Any) -> Any:
        place = (*index[:-1], tirx.floordiv(index[-1], group))
        centered = c.read(x, index).astype("int32")
        if zero_point is not None:
            centered = centered - c.read(zero_point, place).astype("int32")
        return rounded_product(c.target, centered.astype("float32"), c.read(scale, place))

    return te.compute(c.dims(operation.result.type.shape), element, name=operation.name)


def _masked(c: LoweringContext, operation: Operation) -> te.Tensor:
    """A mask that is no constant; those of weights are gone before (MaterializeWeights)."""
    x, mask = operation.operand(0), operation.operand(1)

    def element(*index: Any) -> Any:
        value = c.read(x, index)
        return select(truth(c.read(mask, index)), value, tirx.const(0.0, tvm_dtype(x.type.dtype)))

    return te.compute(c.dims(operation.result.type.shape), element, name=operation.name)


def _lookup(c: LoweringContext, operation: Operation) -> te.Tensor:
    codebook, indices = c.tensor(operation.operand(0)), c.tensor(operation.operand(1))
    last = int(operation.operand(0).type.shape[0]) - 1

    def element(*index: Any) -> Any:
        # an index that no codebook has would read beyond it
        return codebook(tirx.min(indices(*index).astype("int64"), tirx.const(last, "int64")))

    return te.compute(c.dims(operation.result.type.shape), element, name=operation.name)


LOWERINGS: dict[str, Callable[..., Any]] = {
    "dequantize_blocks": _dequantize_blocks,
    "masked": _masked,
    "lookup": _lookup,
}


def pack_pairs(codes: torch.Tensor) -> torch.Tensor:
    """i4 codes [..., K, block] as bytes [..., ceil(K / 2), block]: even k in the low nibble, odd k in the high one."""
    even, odd = codes[..., 0::2, :], codes[..., 1::2, :]
    low = even.to(torch.uint8) & 15
    high = torch.zeros_like(low)
    high[..., : odd.shape[-2], :] = odd.to(torch.uint8) & 15
    return low | high << 4


@dataclass(frozen=True)
class StoredWeight:
    """Read like a packed tensor of `shape`: f32(code - zero_point) · scale (numerics: Q4).

    In blocks codes are [..., k, lane] and parameters [block, k / group, lane], otherwise [..., channel] and
    [0, channel].
    """

    codes: te.Tensor
    shape: tuple[int, ...]
    scale: te.Tensor
    zero_point: te.Tensor | None
    group: int | None
    in_pairs: bool
    in_blocks: bool

    def __getitem__(self, index: Sequence[Any]) -> Any:
        """One weight, f32."""
        code = self._code(index)
        place = self._parameter(index)
        if self.zero_point is not None:
            code = code - self.zero_point[place].astype("int32")
        return code.astype("float32") * self.scale[place]

    def _parameter(self, index: Sequence[Any]) -> tuple[Any, ...]:
        if not self.in_blocks:
            return (0, index[-1])
        group = 0 if self.group is None else tirx.floordiv(index[-2], self.group)
        return (index[0], group, index[-1])

    def _code(self, index: Sequence[Any]) -> Any:
        if not self.in_pairs:
            return self.codes[tuple(index)].astype("int32")
        *outer, k, lane = index
        return _of_pair(self.codes[(*outer, tirx.floordiv(k, 2), lane)], k)


def _of_pair(pair: Any, place: Any) -> Any:
    """The i4 at an even or odd place of a byte, as int32."""
    shift = (tirx.floormod(place, 2) * 4).astype("int32")
    # TVM takes shifts for products without overflow, so the sign cannot be extended by a shift to the top and back
    return ((pair.astype("int32") >> shift) & 15 ^ 8) - 8


def readable(c: LoweringContext, value: Value) -> Callable[..., Any]:
    """Reads elements of a value; constants of i4 lie two a byte, as they do in a file (numerics: I7)."""
    if value.constant is None or value.type.dtype is not DType.I4 or not value.type.rank:
        element: Callable[..., Any] = c.tensor(value)
        return element
    pairs = c.packed(value, "pairs", lambda tensor: pack_pairs(tensor[..., None])[..., 0])

    def read(*index: Any) -> Any:
        return _of_pair(pairs(*index[:-1], tirx.floordiv(index[-1], 2)), index[-1]).astype("int8")

    return read
