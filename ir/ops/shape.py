"""Operations that move elements without computing: reshape, transpose, broadcast, slice, concat, pad, flip."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import Tensor
from torch.nn import functional as F

from whet.ir.definition import (
    Axis,
    Cost,
    IndexMap,
    Kept,
    OpDefinition,
    Tie,
    broadcast_ties,
    kept_shape,
    moved_bytes,
    require,
    same_rank_ties,
)
from whet.ir.dimensions import Dim, floor_div, product, same_dim, simplify_dim
from whet.ir.graph import Operation
from whet.ir.types import TensorType


class Movement(OpDefinition):
    """Base of operations that compute nothing."""

    def cost(self, operation: Operation) -> Cost:
        return Cost(0, moved_bytes(operation))


class Reshape(Movement):
    """The same elements in row-major order under another shape; no -1, dimensions may be expressions."""

    name = "reshape"

    def infer(self, x: TensorType, *, shape: tuple[Dim, ...]) -> TensorType:
        require(same_dim(x.numel, product(shape)), f"{x} has not as many elements as {shape}")
        return TensorType(shape, x.dtype)

    def evaluate(self, x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
        return x.reshape(shape)

    def axes(self, operation: Operation) -> list[Tie]:
        """Dimensions that survive, and factors of those that split or merge: index i of a dimension of which `inner`
        lies within the factor has place i // inner % factor.
        """
        source, target = operation.operand(0).type.shape, operation.result.type.shape
        return [
            tie
            for left, right in matched_blocks(source, target)
            for tie in _factor_ties(_factors(0, left, source), _factors(-1, right, target))
        ]

    def resized(self, operation: Operation, kept: Kept) -> dict[str, Any]:
        return {"shape": kept_shape(operation.attributes["shape"], kept)}


def matched_blocks(source: tuple[Dim, ...], target: tuple[Dim, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions of both shapes with equal products; runs of ones join the run before them."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(source) or j < len(target):
        left, right = list(source[i : i + 1]), list(target[j : j + 1])
        i, j = min(i + 1, len(source)), min(j + 1, len(target))
        while not same_dim(product(left), product(right)):
            take_left = j >= len(target) or (i < len(source) and _smaller(product(left), product(right)))
            if take_left and i < len(source):
                left.append(source[i])
                i += 1
            elif j < len(target):
                right.append(target[j])
                j += 1
            else:
                return blocks
        blocks.append((list(range(i - len(left), i)), list(range(j - len(right), j))))
    return blocks


def _smaller(left: Dim, right: Dim) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        return left < right
    ratio = sympy.cancel(sympy.sympify(left) / sympy.sympify(right))
    return not (ratio.is_integer or (ratio.is_number and ratio > 1))


def _factors(slot: int, dims: list[int], shape: tuple[Dim, ...]) -> list[tuple[Axis, int, int]]:
    """(axis, product of what is inside of it, the same with it) from the innermost on, as far as sizes are static."""
    found = []
    inner = 1
    for dim in reversed(dims):
        size = shape[dim]
        if not isinstance(size, int):
            break
        if size != 1:
            found.append((Axis(slot, dim), inner, inner * size))
        inner *= size
    return found


def _factor_ties(left: list[tuple[Axis, int, int]], right: list[tuple[Axis, int, int]]) -> list[Tie]:
    """A tie for each factor of the common refinement of both, the outermost first: its classes are whole blocks.

    None from where the dimensions have no common refinement on, as with (4, 6) and (6, 4).
    """
    ties = []
    inner = 1
    while left and right:
        outer = min(left[0][2], right[0][2])
        if left[0][2] % outer or right[0][2] % outer or outer % inner:
            break
        ties.append(
            Tie(left[0][0], right[0][0], _factor_map(left[0], inner, outer), _factor_map(right[0], inner, outer))
        )
        left, right = (side[1:] if side[0][2] == outer else side for side in (left, right))
        inner = outer
    return ties[::-1]


def _factor_map(dim: tuple[Axis, int, int], inner: int, outer: int) -> IndexMap:
    _, start, end = dim
    return IndexMap(divide=inner // start, modulo=None if outer == end else outer // inner)


class Transpose(Movement):
    """Dimensions in another order: result dimension d is operand dimension permutation[d]."""

    name = "transpose"

    def infer(self, x: TensorType, *, permutation: tuple[int, ...]) -> TensorType:
        require(
            sorted(permutation) == list(range(x.rank)),
            f"{permutation} is no permutation of {x.rank} dimensions",
        )
        return TensorType(tuple(x.shape[dim] for dim in permutation), x.dtype)

    def evaluate(self, x: Tensor, *, permutation: tuple[int, ...]) -> Tensor:
        return x.permute(permutation)

    def axes(self, operation: Operation) -> list[Tie]:
        return [Tie(Axis(0, old), Axis(-1, new)) for new, old in enumerate(operation.attributes["permutation"])]


class BroadcastTo(Movement):
    """Repeat size-1 (and missing leading) dimensions to `shape`."""

    name = "broadcast_to"

    def infer(self, x: TensorType, *, shape: tuple[Dim, ...]) -> TensorType:
        require(len(shape) >= x.rank, f"{x} has more dimensions than {shape}")
        for size, target in zip(reversed(x.shape), reversed(shape), strict=False):
            require(same_dim(size, target) or same_dim(size, 1), f"{x} does not broadcast to {shape}")
        return TensorType(shape, x.dtype)

    def evaluate(self, x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
        return x.expand(shape)

    def axes(self, operation: Operation) -> list[Tie]:
        return broadcast_ties(operation)

    def resized(self, operation: Operation, kept: Kept) -> dict[str, Any]:
        return {"shape": kept_shape(operation.attributes["shape"], kept)}


class Slice(Movement):
    """x[starts:stops:steps] in every dimension, already normalized: 0 <= start <= stop <= size, step >= 1."""

    name = "slice"

    def infer(
        self, x: TensorType, *, starts: tuple[Dim, ...], stops: tuple[Dim, ...], steps: tuple[int, ...]
    ) -> TensorType:
        require(len(starts) == len(stops) == len(steps) == x.rank, f"one start, stop and step a dimension of {x}")
        require(all(step >= 1 for step in steps), f"steps {steps} must be positive")
        for size, start, stop in zip(x.shape, starts, stops, strict=True):
            if isinstance(size, int) and isinstance(start, int) and isinstance(stop, int):
                require(0 <= start <= stop <= size, f"slice {start}:{stop} leaves a dimension of {size}")
        shape = tuple(
            floor_div(simplify_dim(stop - start + step - 1), step)
            for start, stop, step in zip(starts, stops, steps, strict=True)
        )
        return TensorType(shape, x.dtype)

    def evaluate(self, x: Tensor, *, starts: tuple[int, ...], stops: tuple[int, ...], steps: tuple[int, ...]) -> Tensor:
        return x[tuple(slice(*item) for item in zip(starts, stops, steps, strict=True))]

    def axes(self, operation: Operation) -> list[Tie]:
        """Source i is target (i - start) // step."""
        ties = []
        starts, steps = operation.attributes["starts"], operation.attributes["steps"]
        for dim, (start, step) in enumerate(zip(starts, steps, strict=True)):
            if not isinstance(start, int):
                continue
            if step == 1:
                # indices before the start and behind the stop go alone: nothing of the result is theirs
                ties.append(Tie(Axis(0, dim), Axis(-1, dim), IndexMap(offset=-start)))
        return ties

    def resized(self, operation: Operation, kept: Kept) -> dict[str, Any]:
        """Bounds are counted in what is left of the operand."""
        starts, stops = list(operation.attributes["starts"]), list(operation.attributes["stops"])
        for axis, indices in kept.items():
            if axis.slot == 0:
                starts[axis.dim] = sum(index < starts[axis.dim] for index in indices)
                stops[axis.dim] = sum(index < stops[axis.dim] for index in indices)
        return {**operation.attributes, "starts": tuple(starts), "stops": tuple(stops)}


class Concat(Movement):
    """Operands one after the other along `axis`."""

    name = "concat"

    def infer(self, *operands: TensorType, axis: int) -> TensorType:
        require(len(operands) > 0, "concat needs an operand")
        first = operands[0]
        require(0 <= axis < first.rank, f"axis {axis} is outside of {first}")
        total: Dim = 0
        for operand in operands:
            require(operand.dtype is first.dtype and operand.rank == first.rank, f"{operand} does not fit {first}")
            for dim in range(first.rank):
                require(
                    dim == axis or same_dim(operand.shape[dim], first.shape[dim]),
                    f"{operand} does not fit {first}",
                )
            total = simplify_dim(total + operand.shape[axis])
        return TensorType((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype)

    def evaluate(self, *operands: Tensor, axis: int) -> Tensor:
        return torch.cat(operands, dim=axis)

    def axes(self, operation: Operation) -> list[Tie]:
        axis: int = operation.attributes["axis"]
        offset: int | None = 0
        ties = []
        for slot in range(len(operation.operands)):
            shape = operation.operand(slot).type.shape
            ties += [Tie(Axis(slot, dim), Axis(-1, dim)) for dim in range(len(shape)) if dim != axis]
            if offset is not None:
                ties.append(Tie(Axis(slot, axis), Axis(-1, axis), IndexMap(offset=offset)))
            size = shape[axis]
            # behind a symbolic size the places in the result are unknown
            offset = offset + size if offset is not None and isinstance(size, int) else None
        return ties


# A border of mode "reflect" has at most size - 1 elements, one of "circular" at most size.
_LARGEST_BORDER = {"reflect": 1, "circular": 0}


class Pad(Movement):
    """Grow every dimension by a (low, high) pair; mode "constant" (with `value`), "reflect", "replicate",
    "circular".

    "reflect" pads by less than the size, "circular" by at most the size. Negative amounts crop.
    """

    name = "pad"

    def infer(
        self,
        x: TensorType,
        *,
        padding: tuple[tuple[Dim, Dim], ...],
        mode: str = "constant",
        value: float = 0.0,
    ) -> TensorType:
        require(len(padding) == x.rank, f"one (low, high) pair a dimension of {x}, got {padding}")
        require(mode in ("constant", "reflect", "replicate", "circular"), f"unknown mode {mode!r}")
        for size, amounts in zip(x.shape, padding, strict=True):
            for amount in amounts if mode in _LARGEST_BORDER else ():
                if isinstance(size, int) and isinstance(amount, int):
                    largest = size - _LARGEST_BORDER[mode]
                    require(
                        amount <= max(largest, 0),
                        f"mode {mode!r} pads a dimension of {size} by at most {largest}",
                    )
        shape = tuple(simplify_dim(size + low + high) for size, (low, high) in zip(x.shape, padding, strict=True))
        return TensorType(shape, x.dtype)

    def evaluate(
        self, x: Tensor, *, padding: tuple[tuple[int, int], ...], mode: str = "constant", value: float = 0.0
    ) -> Tensor:
        if mode == "constant":
            flat = [amount for pair in reversed(padding) for amount in pair]
            return (
                F.pad(x, flat, value=value) if x.dtype is not torch.bool else F.pad(x.byte(), flat, value=value).bool()
            )
        for dim, (low, high) in enumerate(padding):
            if low or high:
                x = x.index_select(dim, _border_index(x.shape[dim], low, high, mode).to(x.device))
        return x

    def axes(self, operation: Operation) -> list[Tie]:
        """Where the border repeats elements of the inside, an index of the inside cannot go alone: no tie."""
        repeats = operation.attributes["mode"] != "constant"
        return [
            Tie(Axis(0, dim), Axis(-1, dim), IndexMap(offset=low))
            for dim, (low, high) in enumerate(operation.attributes["padding"])
            if isinstance(low, int) and not (repeats and (low, high) != (0, 0))
        ]

    def resized(self, operation: Operation, kept: Kept) -> dict[str, Any]:
        """Borders are counted in what is left of the result, crops in what is left of the operand."""
        padding = list(operation.attributes["padding"])
        shape = operation.operand(0).type.shape
        for axis, indices in kept.items():
            low, high = operation.attributes["padding"][axis.dim]
            end = shape[axis.dim] + (low if axis.slot < 0 else high)
            below = sum(index < abs(low) for index in indices)
            above = sum(index >= end for index in indices)
            now_low, now_high = padding[axis.dim]
            if axis.slot < 0:
                padding[axis.dim] = (below if low > 0 else now_low, above if high > 0 else now_high)
            else:
                padding[axis.dim] = (-below if low < 0 else now_low, -above if high < 0 else now_high)
        return {**operation.attributes, "padding": tuple(padding)}


def _border_index(size: int, low: int, high: int, mode: str) -> Tensor:
    index = torch.arange(-low, size + high)
    if mode == "replicate":
        return index.clamp(0, size - 1)
    if mode == "circular":
        return index.remainder(size)
    period = max(2 * (size - 1), 1)
    folded = index.remainder(period)
    return torch.where(folded >= size, period - folded, folded)


class Flip(Movement):
    """Reverse the order along `dims`."""

    name = "flip"

    def infer(self, x: TensorType, *, dims: tuple[int, ...]) -> TensorType:
        require(all(0 <= dim < x.rank for dim in dims), f"dims {dims} are outside of {x}")
        return x

    def evaluate(self, x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
        return torch.flip(x, dims)

    def axes(self, operation: Operation) -> list[Tie]:
        return same_rank_ties(operation, excluded=frozenset(operation.attributes["dims"]))


class Triangle(Movement):
    """Keep the lower (or upper) triangle of the last two dimensions, zero the rest; `diagonal` shifts the
    border.
    """

    name = "triangle"

    def infer(self, x: TensorType, *, lower: bool, diagonal: int = 0) -> TensorType:
        require(x.rank >= 2, f"needs two dimensions, got {x}")
        return x

    def evaluate(self, x: Tensor, *, lower: bool, diagonal: int = 0) -> Tensor:
        return torch.tril(x, diagonal) if lower else torch.triu(x, diagonal)

    def axes(self, operation: Operation) -> list[Tie]:
        """The last two dimensions are bound to each other by their indices, so that none may go."""
        rank = operation.result.type.rank
        return same_rank_ties(operation, excluded=frozenset((rank - 2, rank - 1)))


DEFINITIONS: tuple[OpDefinition, ...] = (
    Reshape(),
    Transpose(),
    BroadcastTo(),
    Slice(),
    Concat(),
    Pad(),
    Flip(),
    Triangle(),
)
