"""What an operation is: one class with its operands, attributes, types, meaning, axes and cost.

The signature of `infer` IS the declaration: positional parameters are operands (`| None` makes one optional,
with a default or without, `*xs` takes any number), keyword-only parameters are attributes.

    class Linear(OpDefinition):
        name = "linear"

        def infer(self, x: TensorType, weight: TensorType, bias: TensorType | None = None) -> TensorType: ...
        def evaluate(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from whet.ir.dimensions import Dim, product, same_dim
from whet.ir.types import TensorType

if TYPE_CHECKING:
    from whet.ir.graph import Operation


class InferError(Exception):
    """Operands or attributes that an operation does not accept; the verifier and importer add where."""


# What Python raises where an attribute has another type or length than `infer` expects.
_MISFITS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class Cost:
    """Work of one operation: floating or integer operations (a multiply-add is two), and bytes read and
    written.
    """

    flops: Dim
    bytes: Dim


@dataclass(frozen=True)
class IndexMap:
    """i -> ((i + offset) // divide) % modulo: how an index of one dimension appears in another."""

    offset: int = 0
    divide: int = 1
    modulo: int | None = None

    def __call__(self, index: int) -> int:
        moved = (index + self.offset) // self.divide
        return moved if self.modulo is None else moved % self.modulo


IDENTITY = IndexMap()


@dataclass(frozen=True)
class Axis:
    """One dimension of one operand (slot 0, 1, ...) or result (slot -1, -2, ...) of an operation."""

    slot: int
    dim: int


@dataclass(frozen=True)
class Tie:
    """Indices i of `left` and j of `right` with left_map(i) == right_map(j) form a class: they belong
    together.

    A class goes as a whole: once all of its indices on one side are removed, those on the other side are too.
    An index may be removed from an axis that has ties only as part of at least one class; so where a
    dimension of 768 splits into 12 heads of 64, a head goes (64 indices), or one index of every head (12),
    but never one of 768. An axis that no tie of its operation mentions cannot lose an index at all.
    Structured pruning's dependency groups follow from this (after Fang et al., DepGraph, CVPR 2023);
    `whet.ir.views` computes them.
    """

    left: Axis
    right: Axis
    left_map: IndexMap = IDENTITY
    right_map: IndexMap = IDENTITY


Kept = Mapping[Axis, tuple[int, ...]]
"""The indices that are left, in order, of the dimensions of one operation that shrink; all others stay whole."""


@dataclass(frozen=True)
class Parameter:
    """One declared operand or attribute."""

    name: str
    optional: bool = False
    default: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Signature:
    """Declared operands (the last may be variadic) and attributes."""

    operands: tuple[Parameter, ...]
    variadic: str | None
    attributes: tuple[Parameter, ...]

    @property
    def attribute_names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.attributes)

    def with_defaults(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """All attributes in declared order. Raises InferError for unknown or missing ones."""
        unknown = set(attributes) - set(self.attribute_names)
        if unknown:
            raise InferError(f"unknown attribute(s) {sorted(unknown)}; it has {list(self.attribute_names)}")
        complete = {}
        for parameter in self.attributes:
            if parameter.name in attributes:
                complete[parameter.name] = attributes[parameter.name]
            elif parameter.default is not inspect.Parameter.empty:
                complete[parameter.name] = parameter.default
            else:
                raise InferError(f"attribute {parameter.name!r} is missing")
        return complete


class OpDefinition:
    """Base of all operations; subclasses are stateless and used as one instance each."""

    name: str
    infer: Callable[..., Any]
    """(*operand types, **attributes) -> result type, or a tuple of them. Raises InferError."""
    independent: ClassVar[bool] = False
    """Whether any index of any result may go alone: so where nothing is computed from other values."""
    evaluate: Callable[..., Any]
    """(*operand tensors, **attributes) -> result tensor, or a tuple; differentiable where the maths is."""

    @cached_property
    def signature(self) -> Signature:
        operands, attributes, variadic = [], [], None
        for parameter in inspect.signature(self.infer).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                variadic = parameter.name
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                attributes.append(Parameter(parameter.name, default=parameter.default))
            else:
                operands.append(Parameter(parameter.name, optional=_is_optional(parameter)))
        return Signature(tuple(operands), variadic, tuple(attributes))

    def result_types(self, operands: Sequence[TensorType | None], attributes: dict[str, Any]) -> tuple[TensorType, ...]:
        """The types `infer` gives, always as a tuple. Raises InferError."""
        signature = self.signature
        required = max(
            (place for place, item in enumerate(signature.operands, start=1) if not item.optional), default=0
        )
        if len(operands) < required or (signature.variadic is None and len(operands) > len(signature.operands)):
            raise InferError(f"{self.name} takes {self.describe()}, got {len(operands)} operand(s)")
        for parameter, operand in zip(signature.operands, operands, strict=False):
            if operand is None and not parameter.optional:
                raise InferError(f"operand {parameter.name!r} is required")
        try:
            result = self.infer(*operands, **attributes)
        except _MISFITS as error:
            raise InferError(f"{type(error).__name__}: {error}") from error
        return result if isinstance(result, tuple) else (result,)

    def describe(self) -> str:
        """The declaration on one line, for messages."""
        names = [parameter.name + ("?" if parameter.optional else "") for parameter in self.signature.operands]
        if self.signature.variadic:
            names.append("*" + self.signature.variadic)
        return f"({', '.join(names)}) {{{', '.join(self.signature.attribute_names)}}}"

    def axes(self, operation: Operation) -> list[Tie]:
        """How dimensions of operands and results belong together. Default: not at all."""
        return []

    def resized(self, operation: Operation, kept: Kept) -> dict[str, Any]:
        """The attributes that the operation has once some dimensions have lost indices, after the rule of `Tie`.

        `operation` is still as it was. What `infer` makes of the smaller operands and these attributes must have the
        sizes of `kept`. Default: the attributes as they are.
        """
        return dict(operation.attributes)

    def cost(self, operation: Operation) -> Cost:
        """FLOPs and bytes moved. Default: one operation an output element, every operand read once."""
        return Cost(product([1]) if not operation.results else operation.results[0].type.numel, moved_bytes(operation))

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def _is_optional(parameter: inspect.Parameter) -> bool:
    return parameter.default is None or str(parameter.annotation).endswith("| None")


def moved_bytes(operation: Operation) -> Dim:
    """Bytes of all operands and results, each counted once."""
    values = [*(value for value in operation.operands if value is not None), *operation.results]
    bits = sum((value.type.numel * value.type.dtype.bits for value in dict.fromkeys(values)), start=0)
    return bits // 8 if isinstance(bits, int) else bits / 8


def block_ties(left: Axis, right: Axis, block: int, size: int) -> list[Tie]:
    """Ties of two axes of `size` that keep their division into blocks: whole blocks go, or one index of every
    block.
    """
    if block == 1 or block == size:
        return [Tie(left, right)]
    by_block, within = IndexMap(divide=block), IndexMap(modulo=block)
    return [Tie(left, right, by_block, by_block), Tie(left, right, within, within)]


def kept_shape(shape: tuple[Dim, ...], kept: Kept, slot: int = -1) -> tuple[Dim, ...]:
    """The shape of an operand or result with its shrunken dimensions as they become."""
    return tuple(len(kept[Axis(slot, dim)]) if Axis(slot, dim) in kept else size for dim, size in enumerate(shape))


def kept_blocks(kept: Kept, axis: Axis, block: int, blocks: int) -> int:
    """How many of `blocks` blocks of `block` indices of an axis still have any."""
    return len({index // block for index in kept[axis]}) if axis in kept else blocks


def require_float(**operands: TensorType | None) -> None:
    """Guard of operations that are defined on floating-point operands only."""
    for name, operand in operands.items():
        require(operand is None or operand.dtype.is_float, f"{name} must be floating point, got {operand}")


def require(condition: bool, message: str) -> None:
    """Guard of `infer`: raises InferError with `message` unless `condition`."""
    if not condition:
        raise InferError(message)


def require_same_dtype(**operands: TensorType | None) -> None:
    """Guard: all operands that are present have one element type."""
    dtypes = {name: operand.dtype.value for name, operand in operands.items() if operand is not None}
    require(len(set(dtypes.values())) <= 1, f"operands must have one dtype, got {dtypes}")


def broadcast_shapes(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The common shape by NumPy's rules, trailing dimensions aligned. Raises InferError."""
    rank = max((len(shape) for shape in shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(_broadcast_dims(dims, shapes) for dims in zip(*padded, strict=True))


def _broadcast_dims(dims: tuple[Dim, ...], shapes: tuple[tuple[Dim, ...], ...]) -> Dim:
    result: Dim = 1
    for dim in dims:
        if isinstance(dim, int) and dim == 1:
            continue
        if isinstance(result, int) and result == 1:
            result = dim
        elif not same_dim(result, dim):
            raise InferError(f"shapes {shapes} do not broadcast: {result} against {dim}")
    return result


def broadcast_ties(operation: Operation) -> list[Tie]:
    """Ties of an elementwise operation: aligned dimensions, except where an operand is broadcast."""
    shape = operation.results[0].type.shape
    ties = []
    for slot, operand in enumerate(operation.operands):
        if operand is None:
            continue
        shift = len(shape) - operand.type.rank
        ties += [
            Tie(Axis(slot, dim), Axis(-1, dim + shift))
            for dim, size in enumerate(operand.type.shape)
            if same_dim(size, shape[dim + shift])
        ]
    return ties


def same_rank_ties(operation: Operation, excluded: frozenset[int] = frozenset()) -> list[Tie]:
    """Ties between operand 0 and result 0, dimension by dimension, except the `excluded` ones."""
    rank = operation.results[0].type.rank
    return [Tie(Axis(0, dim), Axis(-1, dim)) for dim in range(rank) if dim not in excluded]
