"""Elementwise operations: one table row a function, and the few that have attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from whet.ir.definition import (
    OpDefinition,
    Tie,
    broadcast_shapes,
    broadcast_ties,
    require,
    require_float,
    require_same_dtype,
)
from whet.ir.graph import Operation
from whet.ir.types import DType, TensorType


class Elementwise(OpDefinition):
    """y[i] = f(x[i], ...): operands broadcast by NumPy's rules."""

    def axes(self, operation: Operation) -> list[Tie]:
        return broadcast_ties(operation)


class Unary(Elementwise):
    """One operand; the result has its type, or bool where `to_bool`."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor], to_bool: bool = False) -> None:
        self.name = name
        self._function = function
        self._to_bool = to_bool
        self._float_only = not to_bool and name not in _INTEGER_UNARY

    def infer(self, x: TensorType) -> TensorType:
        if self._float_only:
            require_float(x=x)
        return TensorType(x.shape, DType.BOOL if self._to_bool else x.dtype)

    def evaluate(self, x: Tensor) -> Tensor:
        return self._function(x)


class Binary(Elementwise):
    """Two operands of one dtype; the result has it too, or bool where `to_bool`."""

    def __init__(self, name: str, function: Callable[[Tensor, Tensor], Tensor], to_bool: bool = False) -> None:
        self.name = name
        self._function = function
        self._to_bool = to_bool

    def infer(self, x: TensorType, y: TensorType) -> TensorType:
        require_same_dtype(x=x, y=y)
        if self.name in _FLOAT_BINARY:
            require_float(x=x)
        return TensorType(broadcast_shapes(x.shape, y.shape), DType.BOOL if self._to_bool else x.dtype)

    def evaluate(self, x: Tensor, y: Tensor) -> Tensor:
        return self._function(x, y)


class Cast(Elementwise):
    """Conversion of the element type: float to integer truncates toward zero, integers wrap, non-zero is
    True.
    """

    name = "cast"

    def infer(self, x: TensorType, *, dtype: DType) -> TensorType:
        return TensorType(x.shape, dtype)

    def evaluate(self, x: Tensor, *, dtype: DType) -> Tensor:
        # i4 lies in int8; after the wrap to eight bits, four are left, two's complement (numerics: I1, I7)
        return ((x.to(torch.int8) + 8) & 15) - 8 if dtype is DType.I4 else x.to(dtype.torch)


class Clamp(Elementwise):
    """min(max(x, minimum), maximum); a bound that is None does not bind. NaN stays NaN."""

    name = "clamp"

    def infer(self, x: TensorType, *, minimum: float | None = None, maximum: float | None = None) -> TensorType:
        for bound in (minimum, maximum):
            if bound is None or x.dtype.is_float:
                continue
            require(x.dtype.is_integer, f"has no order: {x}")
            low, high = x.dtype.integer_range
            inside = not isinstance(bound, int) or low <= bound <= high
            require(inside and not isinstance(bound, float), f"{bound!r} is no bound of {x.dtype.value}")
        return x

    def evaluate(self, x: Tensor, *, minimum: float | None = None, maximum: float | None = None) -> Tensor:
        return torch.clamp(x, minimum, maximum) if (minimum, maximum) != (None, None) else x


class Where(Elementwise):
    """condition ? x : y."""

    name = "where"

    def infer(self, condition: TensorType, x: TensorType, y: TensorType) -> TensorType:
        require(condition.dtype is DType.BOOL, f"condition must be bool, got {condition.dtype.value}")
        require_same_dtype(x=x, y=y)
        return TensorType(broadcast_shapes(condition.shape, x.shape, y.shape), x.dtype)

    def evaluate(self, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(condition, x, y)


class Gelu(Elementwise):
    """x · Φ(x) (Hendrycks & Gimpel 2016); approximate "tanh" or "none" (by erf)."""

    name = "gelu"

    def infer(self, x: TensorType, *, approximate: str = "none") -> TensorType:
        require(approximate in ("none", "tanh"), f"approximate must be 'none' or 'tanh', got {approximate!r}")
        require_float(x=x)
        return x

    def evaluate(self, x: Tensor, *, approximate: str = "none") -> Tensor:
        return F.gelu(x, approximate=approximate)


class LeakyRelu(Elementwise):
    """x where x > 0, slope · x elsewhere."""

    name = "leaky_relu"

    def infer(self, x: TensorType, *, slope: float = 0.01) -> TensorType:
        require_float(x=x)
        return x

    def evaluate(self, x: Tensor, *, slope: float = 0.01) -> Tensor:
        return F.leaky_relu(x, slope)


class Elu(Elementwise):
    """scale · (x where x > 0, alpha · (exp(input_scale · x) - 1) elsewhere); SELU and CELU are of this form."""

    name = "elu"

    def infer(self, x: TensorType, *, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> TensorType:
        require_float(x=x)
        return x

    def evaluate(self, x: Tensor, *, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
        y: Tensor = torch.ops.aten.elu(x, alpha, scale, input_scale)
        return y


class Softplus(Elementwise):
    """log(1 + exp(beta · x)) / beta, and x itself where beta · x > threshold."""

    name = "softplus"

    def infer(self, x: TensorType, *, beta: float = 1.0, threshold: float = 20.0) -> TensorType:
        require_float(x=x)
        return x

    def evaluate(self, x: Tensor, *, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
        return F.softplus(x, beta, threshold)


# Unary operations that integers have too; the others need floating point, a cast is an operation of its own.
_INTEGER_UNARY = frozenset({"neg", "abs", "sign", "relu", "ceil", "floor", "round", "trunc", "bitwise_not"})
_FLOAT_BINARY = frozenset({"div", "atan2"})

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "asinh": torch.asinh,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": F.logsigmoid,
    "relu": torch.relu,
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softsign": F.softsign,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "round": torch.round,
    "trunc": torch.trunc,
    "bitwise_not": torch.bitwise_not,
}
_UNARY_TO_BOOL: dict[str, Callable[[Tensor], Tensor]] = {
    "logical_not": torch.logical_not,
    "isnan": torch.isnan,
    "isinf": torch.isinf,
    "isfinite": torch.isfinite,
}
_BINARY: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": lambda x, y: torch.div(x, y, rounding_mode=None),
    "floor_div": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "trunc_div": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "remainder": torch.remainder,
    "fmod": torch.fmod,
    "pow": torch.pow,
    "atan2": torch.atan2,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "bitwise_and": torch.bitwise_and,
    "bitwise_or": torch.bitwise_or,
    "bitwise_xor": torch.bitwise_xor,
    "left_shift": torch.bitwise_left_shift,
    "right_shift": torch.bitwise_right_shift,
}
_BINARY_TO_BOOL: dict[str, Callable[..., Any]] = {
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}

DEFINITIONS: tuple[OpDefinition, ...] = (
    *(Unary(name, function) for name, function in _UNARY.items()),
    *(Unary(name, function, to_bool=True) for name, function in _UNARY_TO_BOOL.items()),
    *(Binary(name, function) for name, function in _BINARY.items()),
    *(Binary(name, function, to_bool=True) for name, function in _BINARY_TO_BOOL.items()),
    Cast(),
    Clamp(),
    Where(),
    Gelu(),
    LeakyRelu(),
    Elu(),
    Softplus(),
)
