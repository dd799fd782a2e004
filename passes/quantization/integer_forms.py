"""Operations on dequantized operands as operations on their codes: Σ (x - zx) · w in i32, and what it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from whet.ir.dimensions import DimRange, product
from whet.ir.graph import Operation, Value
from whet.ir.ops.contraction import spatial_dims
from whet.ir.types import DType
from whet.passes.quantization.accumulation import LARGEST, bias_limit, longest, terms
from whet.passes.rewrite.pattern import MatchFailure
from whet.passes.weights import evaluate_weight, key_of, output_dim


@dataclass(frozen=True)
class Codes:
    """What a dequantize reads: integers with constant parameters, per tensor or along `axis`."""

    value: Value
    scale: Tensor
    """f32, as the graph has it."""
    zero_point: Tensor
    axis: int | None

    @property
    def per_tensor(self) -> bool:
        return self.scale.dim() == 0 and self.zero_point.dim() == 0

    @property
    def point(self) -> int:
        """The zero point of a tensor that has one."""
        return int(self.zero_point)

    def matches(self, other: Codes) -> bool:
        """Whether equal integers stand for equal numbers."""
        return (
            self.value.type.dtype is other.value.type.dtype
            and self.axis == other.axis
            and torch.equal(self.scale, other.scale)
            and torch.equal(self.zero_point, other.zero_point)
        )


def dequantized(value: Value) -> Codes | None:
    """The 8-bit (or 4-bit) codes behind a value; None where it is not dequantized from such, by constants."""
    operation = value.producer
    if operation is None or operation.name != "dequantize":
        return None
    if operation.operand(0).type.dtype is DType.I32:
        return None
    return parameters_of(operation, operation.operand(0))


def parameters_of(operation: Operation, codes: Value) -> Codes | None:
    """`codes` with the parameters of a quantize or dequantize; None where they are computed in the graph."""
    scale = operation.operand(1).constant
    point = operation.operands[2] if len(operation.operands) > 2 else None
    zero_point = torch.zeros((), dtype=torch.int32) if point is None else point.constant
    if scale is None or zero_point is None:
        return None
    if scale.dim() > 1 or zero_point.dim() > 1 or (scale.dim() and operation.attributes["axis"] is None):
        return None
    axis = operation.attributes["axis"] if scale.dim() or zero_point.dim() else None
    return Codes(codes, scale, zero_point, axis)


@dataclass(frozen=True)
class IntegerForm:
    """An operation on codes with an i32 result, which times `scale` (f64, [] or [channels] along `axis`) is the real
    one. `rest` is a float bias that is left to be added, because no i32 can hold it.
    """

    name: str
    operands: tuple[Value | None, ...]
    scale: Tensor
    attributes: Mapping[str, Any] = field(default_factory=dict)
    axis: int | None = None
    bias: Tensor | None = None
    """i32 [channels]: the last operand, which is yet to be made a constant."""
    bias_key: str = ""
    rest: Value | None = None


def integer_form(operation: Operation, dimensions: Mapping[str, DimRange]) -> IntegerForm:
    """Raises MatchFailure, with the reason, where there is none."""
    if operation.result.type.dtype is not DType.F32:
        raise MatchFailure(f"computes in {operation.result.type.dtype.value}, not in f32", operation.result)
    return _READERS[operation.name](operation, dimensions)


def _activation(value: Value) -> Codes:
    codes = dequantized(value)
    if codes is None:
        raise MatchFailure("is not dequantized by constants", value)
    if not codes.per_tensor:
        raise MatchFailure("activations must have one scale and zero point", value)
    return codes


def _weight(value: Value) -> Codes:
    codes = dequantized(value)
    if codes is None or codes.value.constant is None:
        raise MatchFailure("the weight is not dequantized from a constant", value)
    if bool((codes.zero_point != 0).any()):
        raise MatchFailure("weights must be symmetric: their zero point is not 0", value)
    if codes.axis not in (None, 0):
        raise MatchFailure(f"the weight has a scale for each index of dimension {codes.axis}, not 0", value)
    return codes


def _require_length(operation: Operation, largest: tuple[int, int], dimensions: Mapping[str, DimRange]) -> int:
    count, most = terms(operation, dimensions), longest(*largest)
    if count is None:
        raise MatchFailure("the length of its sums has no bound", *operation.operands[:2])
    if count > most:
        raise MatchFailure(f"sums {count} products, of which 32 bits hold {most}", *operation.operands[:2])
    return count


def _layer(name: str) -> Callable[[Operation, Mapping[str, DimRange]], IntegerForm]:
    """conv or linear: Σ (x - zx) · w + b, b in units of the product of the scales (numerics: Q5, Q8)."""

    def read(operation: Operation, dimensions: Mapping[str, DimRange]) -> IntegerForm:
        x, w = _activation(operation.operand(0)), _weight(operation.operand(1))
        assert w.value.constant is not None
        largest = int(w.value.constant.int().abs().max()) if w.value.constant.numel() else 1
        count = _require_length(operation, (LARGEST[x.value.type.dtype], largest), dimensions)
        scale = x.scale.double() * w.scale.double()
        axis = output_dim(operation) if scale.dim() else None
        attributes = {**operation.attributes, "x_zero_point": x.point}
        bias = operation.operands[2] if len(operation.operands) > 2 else None
        form = IntegerForm(name, (x.value, w.value), scale, attributes, axis)
        return form if bias is None else _with_bias(form, bias, count)

    return read


def _with_bias(form: IntegerForm, bias: Value, count: int) -> IntegerForm:
    tensor = evaluate_weight(bias)
    if tensor is not None:
        rounded = torch.round(tensor.double() / form.scale)
        if bool((rounded.abs() <= bias_limit(count)).all()):
            integers, key = rounded.to(torch.int32), key_of(bias)
            return IntegerForm(
                form.name, form.operands, form.scale, form.attributes, form.axis, integers, f"{key}.i32" if key else ""
            )
    return IntegerForm(form.name, form.operands, form.scale, form.attributes, form.axis, rest=bias)


def _matmul(operation: Operation, dimensions: Mapping[str, DimRange]) -> IntegerForm:
    """Both operands per tensor (numerics: Q5, Q6)."""
    x, y = (_activation(operation.operand(slot)) for slot in range(2))
    _require_length(operation, (LARGEST[x.value.type.dtype], LARGEST[y.value.type.dtype]), dimensions)
    scale = x.scale.double() * y.scale.double()
    points = {"x_zero_point": x.point, "y_zero_point": y.point}
    return IntegerForm("matmul_integer", (x.value, y.value), scale, points)


def _mean(operation: Operation, dimensions: Mapping[str, DimRange]) -> IntegerForm:
    """Σ (x - zx), whose scale takes the division (numerics: Q11)."""
    x = _activation(operation.operand(0))
    dims = operation.attributes["dims"]
    if not dims:
        raise MatchFailure("reduces nothing", operation.result)
    count = _count(product(x.value.type.shape[dim] for dim in dims), operation)
    attributes = {"dims": dims, "keepdims": operation.attributes["keepdims"], "x_zero_point": x.point}
    return IntegerForm("sum_integer", (x.value,), x.scale.double() / count, attributes)


def _count(size: Any, operation: Operation) -> int:
    if not isinstance(size, int):
        raise MatchFailure("the number of elements must be static", operation.operand(0))
    if not 0 < size <= longest(255, 1):
        raise MatchFailure(f"sums {size} codes, of which 32 bits hold {longest(255, 1)}", operation.operand(0))
    return size


def _avg_pool(operation: Operation, dimensions: Mapping[str, DimRange]) -> IntegerForm:
    x, attributes = _activation(operation.operand(0)), operation.attributes
    padded = any(map(any, attributes["padding"]))
    divisor = attributes["divisor"]
    if attributes["ceil"] or (padded and divisor is None and not attributes["count_padding"]):
        raise MatchFailure("windows at the border have another divisor", operation.result)
    size = _count(math.prod(attributes["kernel"]), operation)
    kept = {key: attributes[key] for key in ("kernel", "stride", "padding", "layout")}
    scale = x.scale.double() / (divisor or size)
    return IntegerForm("sum_pool_integer", (x.value,), scale, {**kept, "x_zero_point": x.point})


def _adaptive_avg_pool(operation: Operation, dimensions: Mapping[str, DimRange]) -> IntegerForm:
    """Windows of one size, where the sizes divide; over all positions that is a mean."""
    x, attributes = _activation(operation.operand(0)), operation.attributes
    dims = tuple(spatial_dims(x.value.type.rank, attributes["layout"]))
    sizes = [x.value.type.shape[dim] for dim in dims]
    if all(size == 1 for size in attributes["size"]):
        count = _count(product(sizes), operation)
        summed = {"dims": dims, "keepdims": True, "x_zero_point": x.point}
        return IntegerForm("sum_integer", (x.value,), x.scale.double() / count, summed)
    kernel = []
    for size, windows in zip(sizes, attributes["size"], strict=True):
        if not isinstance(size, int) or not isinstance(windows, int) or size % windows:
            raise MatchFailure(f"{windows} windows over {size} positions have different sizes", operation.operand(0))
        kernel.append(size // windows)
    pool = {"kernel": tuple(kernel), "stride": tuple(kernel), "padding": ((0, 0),) * len(kernel)}
    scale = x.scale.double() / _count(math.prod(kernel), operation)
    return IntegerForm(
        "sum_pool_integer", (x.value,), scale, {**pool, "layout": attributes["layout"], "x_zero_point": x.point}
    )


_READERS: Final[Mapping[str, Callable[[Operation, Mapping[str, DimRange]], IntegerForm]]] = MappingProxyType(
    {
        "conv": _layer("conv_integer"),
        "linear": _layer("linear_integer"),
        "matmul": _matmul,
        "mean": _mean,
        "avg_pool": _avg_pool,
        "adaptive_avg_pool": _adaptive_avg_pool,
    }
)
FORMS: Final = frozenset(_READERS)
"""Operations that may have an integer form."""

# Why an operation has no integer form at all, for those of which one might expect it.
_NO_FORM: Final = MappingProxyType(
    {
        "conv_transpose": "a transposed convolution has no integer kernel",
        "einsum": "an einsum has no integer kernel; write it as matmul or linear",
        "attention": "attention is quantized as the matmuls that DecomposeAttention makes of it",
        "lstm": "recurrent layers are quantized by a pass of their own",
        "gru": "recurrent layers are quantized by a pass of their own",
        "rnn": "recurrent layers are quantized by a pass of their own",
    }
)


def obstacle(operation: Operation, dimensions: Mapping[str, DimRange]) -> str | None:
    """Why an operation could not run on codes even if its operands were quantized; None where it could."""
    if operation.name in _NO_FORM:
        return _NO_FORM[operation.name]
    dtype = operation.results[0].type.dtype
    if dtype is not DType.F32:
        return f"computes in {dtype.value}, not in f32"
    if operation.name in ("conv", "linear") and evaluate_weight(operation.operand(1)) is None:
        return "its weight is computed in the graph"
    if operation.name in ("conv", "linear", "matmul"):
        count = terms(operation, dimensions)
        most = longest(255, 255 if operation.name == "matmul" else 127)
        if count is None:
            return "the length of its sums has no bound: give the dimension a maximum"
        return f"sums {count} products, of which 32 bits hold {most}" if count > most else None
    return None
