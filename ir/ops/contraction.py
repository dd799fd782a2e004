"""Operations that multiply and sum: linear, matmul, convolution; their integer forms are in quantized.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    block_ties,
    broadcast_shapes,
    kept_blocks,
    moved_bytes,
    require,
    require_same_dtype,
)
from whet.ir.dimensions import Dim, floor_div, product, same_dim, simplify_dim, smaller_dim
from whet.ir.graph import Operation
from whet.ir.types import TensorType

CHANNELS_FIRST = "channels_first"
CHANNELS_LAST = "channels_last"


class Linear(OpDefinition):
    """y[..., o] = Σ_i x[..., i] · weight[o, i] + bias[o]."""

    name = "linear"

    def infer(self, x: TensorType, weight: TensorType, bias: TensorType | None = None) -> TensorType:
        require_same_dtype(x=x, weight=weight, bias=bias)
        return TensorType(linear_shape(x, weight, bias), x.dtype)

    def evaluate(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def axes(self, operation: Operation) -> list[Tie]:
        return linear_ties(operation)

    def cost(self, operation: Operation) -> Cost:
        return Cost(2 * operation.result.type.numel * operation.operand(1).type.shape[1], moved_bytes(operation))


def linear_shape(x: TensorType, weight: TensorType, bias: TensorType | None) -> tuple[Dim, ...]:
    """Result shape of a linear layer. Raises InferError."""
    require(x.rank >= 1 and weight.rank == 2, f"x must have a dimension and weight two, got {x} and {weight}")
    require(
        same_dim(x.shape[-1], weight.shape[1]),
        f"x has {x.shape[-1]} features, weight takes {weight.shape[1]}",
    )
    if bias is not None:
        require(
            bias.rank == 1 and same_dim(bias.shape[0], weight.shape[0]),
            f"bias {bias} must have {weight.shape[0]} elements",
        )
    return (*x.shape[:-1], weight.shape[0])


def linear_ties(operation: Operation) -> list[Tie]:
    """Input features with the columns of the weight, output features with its rows and the bias."""
    last = operation.operand(0).type.rank - 1
    ties = [Tie(Axis(0, dim), Axis(-1, dim)) for dim in range(last)]
    ties += [Tie(Axis(0, last), Axis(1, 1)), Tie(Axis(1, 0), Axis(-1, last))]
    if len(operation.operands) > 2 and operation.operands[2] is not None:
        ties.append(Tie(Axis(2, 0), Axis(-1, last)))
    return ties


class Matmul(OpDefinition):
    """y[..., m, n] = Σ_k x[..., m, k] · y[..., k, n]; leading dimensions broadcast, both operands have rank
    >= 2.
    """

    name = "matmul"

    def infer(self, x: TensorType, y: TensorType) -> TensorType:
        require_same_dtype(x=x, y=y)
        return TensorType(matmul_shape(x, y), x.dtype)

    def evaluate(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.matmul(x, y)

    def axes(self, operation: Operation) -> list[Tie]:
        return matmul_ties(operation)

    def cost(self, operation: Operation) -> Cost:
        return Cost(2 * operation.result.type.numel * operation.operand(0).type.shape[-1], moved_bytes(operation))


def matmul_shape(x: TensorType, y: TensorType) -> tuple[Dim, ...]:
    """Result shape of a (batched) matrix product. Raises InferError."""
    require(x.rank >= 2 and y.rank >= 2, f"both operands need two dimensions, got {x} and {y}")
    require(same_dim(x.shape[-1], y.shape[-2]), f"inner dimensions differ: {x} and {y}")
    return (*broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1])


def matmul_ties(operation: Operation) -> list[Tie]:
    """Rows, columns, the summed dimension, and batch dimensions that are not broadcast."""
    x, y, rank = operation.operand(0).type, operation.operand(1).type, operation.result.type.rank
    ties = [
        Tie(Axis(0, x.rank - 2), Axis(-1, rank - 2)),
        Tie(Axis(1, y.rank - 1), Axis(-1, rank - 1)),
        Tie(Axis(0, x.rank - 1), Axis(1, y.rank - 2)),
    ]
    for slot, operand in ((0, x), (1, y)):
        shift = rank - operand.rank
        ties += [
            Tie(Axis(slot, dim), Axis(-1, dim + shift))
            for dim in range(operand.rank - 2)
            if same_dim(operand.shape[dim], operation.result.type.shape[dim + shift])
        ]
    return ties


class Conv(OpDefinition):
    """N-d convolution (cross-correlation), N = 1, 2, 3, with groups.

    y[n, o, p] = Σ_{i, k} x[n, i, p · stride + k · dilation - padding_low] · weight[o, i, k] + bias[o]; weight
    is [out, in / groups, *kernel]. `padding` is a (low, high) pair a spatial dimension. With layout
    "channels_last" x and y are [N, *spatial, C]; the weight's layout does not change.
    """

    name = "conv"

    def infer(
        self,
        x: TensorType,
        weight: TensorType,
        bias: TensorType | None = None,
        *,
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        dilation: tuple[int, ...],
        groups: int = 1,
        layout: str = CHANNELS_FIRST,
    ) -> TensorType:
        require_same_dtype(x=x, weight=weight, bias=bias)
        return TensorType(conv_shape(x, weight, bias, stride, padding, dilation, groups, layout), x.dtype)

    def evaluate(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        dilation: tuple[int, ...],
        groups: int = 1,
        layout: str = CHANNELS_FIRST,
    ) -> Tensor:
        return convolve(x, weight, bias, stride, padding, dilation, groups, layout)

    def axes(self, operation: Operation) -> list[Tie]:
        return conv_ties(operation)

    def resized(self, operation: Operation, kept: Kept) -> dict[str, Any]:
        return resized_groups(operation, kept)

    def cost(self, operation: Operation) -> Cost:
        return conv_cost(operation)


def channel_dim(rank: int, layout: str) -> int:
    """Index of the channel dimension in a [N, C, *spatial] or [N, *spatial, C] tensor."""
    return 1 if layout == CHANNELS_FIRST else rank - 1


def spatial_dims(rank: int, layout: str) -> range:
    """Indices of the spatial dimensions."""
    return range(2, rank) if layout == CHANNELS_FIRST else range(1, rank - 1)


def to_channels_first(x: Tensor, layout: str) -> Tensor:
    """A view of `x`, which has `layout`, as [N, C, *spatial]."""
    return x if layout == CHANNELS_FIRST else x.movedim(-1, 1)


def from_channels_first(x: Tensor, layout: str) -> Tensor:
    """A view of `x`, which is [N, C, *spatial], in `layout`."""
    return x if layout == CHANNELS_FIRST else x.movedim(1, -1)


def feature_map(batch: Dim, channels: Dim, spatial: Sequence[Dim], layout: str) -> tuple[Dim, ...]:
    """The shape of a feature map in `layout`."""
    return (batch, channels, *spatial) if layout == CHANNELS_FIRST else (batch, *spatial, channels)


def require_layout(layout: str) -> None:
    """Guard: the name of a layout."""
    require(layout in (CHANNELS_FIRST, CHANNELS_LAST), f"unknown layout {layout!r}")


def window_size(size: Dim, kernel: int, stride: int, pad: tuple[int, int], dilation: int, ceil: bool = False) -> Dim:
    """Number of windows along one dimension; `ceil` counts a last partial window that starts inside."""
    span = simplify_dim(size + pad[0] + pad[1] - dilation * (kernel - 1) - 1)
    if not ceil:
        return simplify_dim(floor_div(span, stride) + 1)
    count = simplify_dim(floor_div(simplify_dim(span + stride - 1), stride) + 1)
    starting_inside = simplify_dim(floor_div(simplify_dim(size + pad[0] - 1), stride) + 1)
    return smaller_dim(count, starting_inside)


def conv_shape(
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
    layout: str,
) -> tuple[Dim, ...]:
    """Result shape of a convolution. Raises InferError."""
    require_layout(layout)
    rank = weight.rank
    require(rank in (3, 4, 5) and x.rank == rank, f"x {x} and weight {weight} must both have rank 3, 4 or 5")
    spatial = rank - 2
    for name, value in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        require(len(value) == spatial, f"{name} {value} must have {spatial} entries")
    channels = x.shape[channel_dim(rank, layout)]
    require(
        same_dim(channels, weight.shape[1] * groups),
        f"x has {channels} channels, weight {weight} takes {weight.shape[1]} x {groups} group(s)",
    )
    out = weight.shape[0]
    require(
        not isinstance(out, int) or out % groups == 0,
        f"{out} output channels do not divide into {groups} groups",
    )
    if bias is not None:
        require(bias.rank == 1 and same_dim(bias.shape[0], out), f"bias {bias} must have {out} elements")
    sizes = []
    for index, dim in enumerate(spatial_dims(rank, layout)):
        kernel = weight.shape[2 + index]
        require(isinstance(kernel, int), f"kernel sizes must be static, got {weight}")
        sizes.append(window_size(x.shape[dim], int(kernel), stride[index], padding[index], dilation[index]))
    require(
        all(not isinstance(size, int) or size > 0 for size in sizes),
        f"kernel {weight} is larger than the padded {x}",
    )
    return feature_map(x.shape[0], out, sizes, layout)


def pad_spatial(x: Tensor, padding: tuple[tuple[int, int], ...], value: float = 0.0) -> Tensor:
    """Pad the trailing dimensions of a channels-first tensor by (low, high) pairs."""
    flat = [amount for pair in reversed(padding) for amount in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def windows(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: tuple[tuple[int, int], ...],
    layout: str,
) -> Tensor:
    """A view [N, C, *positions, *kernel] of what each output position of a convolution reads (im2col)."""
    patches = pad_spatial(to_channels_first(x, layout), padding)
    for index, size in enumerate(kernel):
        span = dilation[index] * (size - 1) + 1
        patches = patches.unfold(2 + index, span, stride[index])[..., :: dilation[index]]
    return patches


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
    layout: str,
) -> Tensor:
    """Convolution by torch, with asymmetric padding and either layout."""
    x, weight = _with_channels(to_channels_first(x, layout), weight, groups, 1)
    convolution = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
    if all(low == high for low, high in padding):
        y = convolution(x, weight, bias, stride, tuple(low for low, _ in padding), dilation, groups)
    else:
        y = convolution(pad_spatial(x, padding), weight, bias, stride, 0, dilation, groups)
    return from_channels_first(y, layout)


def _with_channels(x: Tensor, weight: Tensor, groups: int, dim: int) -> tuple[Tensor, Tensor]:
    """Operands without input channels (dimension `dim` of the weight) with one of zeros a group, of which torch makes
    the empty sum.
    """
    if weight.shape[dim] or x.shape[1]:
        return x, weight
    shape = list(weight.shape)
    shape[dim] = groups if dim == 0 else 1
    return x.new_zeros((x.shape[0], groups, *x.shape[2:])), weight.new_zeros(shape)


def conv_ties(operation: Operation) -> list[Tie]:
    """Batch and channels. With groups, a channel of x and one of the weight's rows belong together by their
    group.
    """
    rank = operation.operand(1).type.rank
    layout, groups = operation.attributes["layout"], operation.attributes["groups"]
    channel = channel_dim(rank, layout)
    weight = operation.operand(1).type.shape
    rows = [Axis(slot, 0) for slot in (1, 2) if operation.operands[slot:] and operation.operands[slot] is not None]
    if groups == 1:
        row_ties = [Tie(row, Axis(-1, channel)) for row in rows]
        return [Tie(Axis(0, 0), Axis(-1, 0)), *row_ties, Tie(Axis(0, channel), Axis(1, 1))]
    inner, outer = int(weight[1]), int(weight[0]) // groups
    ties = [Tie(Axis(0, 0), Axis(-1, 0))]
    ties += [tie for row in rows for tie in block_ties(row, Axis(-1, channel), outer, int(weight[0]))]
    ties.append(Tie(Axis(0, channel), Axis(1, 0), IndexMap(divide=inner), IndexMap(divide=outer)))
    if inner > 1:
        ties.append(Tie(Axis(0, channel), Axis(1, 1), IndexMap(modulo=inner)))
    return ties


def resized_groups(operation: Operation, kept: Kept) -> dict[str, Any]:
    """The attributes of a convolution with as many groups as still have channels."""
    x, groups = operation.operand(0).type, operation.attributes["groups"]
    channel = channel_dim(x.rank, operation.attributes["layout"])
    if groups == 1:
        return dict(operation.attributes)
    block = int(x.shape[channel]) // groups
    return {**operation.attributes, "groups": kept_blocks(kept, Axis(0, channel), block, groups)}


def conv_cost(operation: Operation) -> Cost:
    """Two operations for each tap of each output element."""
    weight = operation.operand(1).type
    taps = product(weight.shape[1:])
    return Cost(2 * operation.result.type.numel * taps, moved_bytes(operation))


class ConvTranspose(OpDefinition):
    """Transposed convolution, the gradient of `conv` with respect to its input.

    weight is [in, out / groups, *kernel]; output size = (size - 1) · stride - low - high + dilation · (kernel
    - 1) + output_padding + 1. Layouts as in `conv`.
    """

    name = "conv_transpose"

    def infer(
        self,
        x: TensorType,
        weight: TensorType,
        bias: TensorType | None = None,
        *,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        output_padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int = 1,
        layout: str = CHANNELS_FIRST,
    ) -> TensorType:
        require_same_dtype(x=x, weight=weight, bias=bias)
        require_layout(layout)
        rank = weight.rank
        require(rank in (3, 4, 5) and x.rank == rank, f"x {x} and weight {weight} must both have rank 3, 4 or 5")
        given = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
        for name, value in given.items():
            require(len(value) == rank - 2, f"{name} {value} must have {rank - 2} entries")
        channels = x.shape[channel_dim(rank, layout)]
        require(not isinstance(channels, int) or channels % groups == 0, f"{channels} channels, {groups} groups")
        require(same_dim(channels, weight.shape[0]), f"x has {channels} channels, weight takes {weight.shape[0]}")
        out = simplify_dim(weight.shape[1] * groups)
        if bias is not None:
            require(bias.rank == 1 and same_dim(bias.shape[0], out), f"bias {bias} must have {out} elements")
        sizes = [
            simplify_dim(
                (x.shape[dim] - 1) * stride[index]
                - 2 * padding[index]
                + dilation[index] * (weight.shape[2 + index] - 1)
                + output_padding[index]
                + 1
            )
            for index, dim in enumerate(spatial_dims(rank, layout))
        ]
        require(
            all(not isinstance(size, int) or size > 0 for size in sizes),
            f"nothing is left of {x}: sizes {sizes}",
        )
        return TensorType(feature_map(x.shape[0], out, sizes, layout), x.dtype)

    def evaluate(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        output_padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int = 1,
        layout: str = CHANNELS_FIRST,
    ) -> Tensor:
        convolution = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.dim() - 3]
        x, weight = _with_channels(to_channels_first(x, layout), weight, groups, 0)
        y = convolution(
            x,
            weight,
            bias,
            stride,
            padding,
            output_padding,
            groups,
            dilation,
        )
        return from_channels_first(y, layout)

    def axes(self, operation: Operation) -> list[Tie]:
        rank = operation.operand(1).type.rank
        channel = channel_dim(rank, operation.attributes["layout"])
        groups = operation.attributes["groups"]
        weight = operation.operand(1).type.shape
        inner, outer = (int(weight[0]) // groups, int(weight[1])) if groups > 1 else (1, 1)
        result, size = Axis(-1, channel), outer * groups
        ties = [Tie(Axis(0, 0), Axis(-1, 0))]
        if operation.operands[2:] and operation.operands[2] is not None:
            ties += block_ties(Axis(2, 0), result, outer, size) if groups > 1 else [Tie(Axis(2, 0), result)]
        if groups == 1:
            return [*ties, Tie(Axis(0, channel), Axis(1, 0)), Tie(Axis(1, 1), result)]
        ties += block_ties(Axis(0, channel), Axis(1, 0), inner, inner * groups)
        ties.append(Tie(Axis(0, channel), result, IndexMap(divide=inner), IndexMap(divide=outer)))
        if outer > 1:
            ties.append(Tie(Axis(1, 1), result, right_map=IndexMap(modulo=outer)))
        return ties

    def resized(self, operation: Operation, kept: Kept) -> dict[str, Any]:
        return resized_groups(operation, kept)

    def cost(self, operation: Operation) -> Cost:
        weight = operation.operand(1).type
        return Cost(2 * operation.operand(0).type.numel * product(weight.shape[1:]), moved_bytes(operation))


class Einsum(OpDefinition):
    """Sum of products by Einstein's notation, e.g. "bij,bjk->bik"; the result is always written."""

    name = "einsum"

    def infer(self, *operands: TensorType, equation: str) -> TensorType:
        terms, result = parse_equation(equation)
        require(len(terms) == len(operands), f"{equation!r} takes {len(terms)} operands, got {len(operands)}")
        sizes: dict[str, Dim] = {}
        for term, operand in zip(terms, operands, strict=True):
            require(len(term) == operand.rank, f"{term!r} of {equation!r} does not fit {operand}")
            for letter, size in zip(term, operand.shape, strict=True):
                require(
                    same_dim(sizes.setdefault(letter, size), size),
                    f"{letter!r} of {equation!r} has two sizes",
                )
        require(set(result) <= set(sizes), f"{equation!r} has a result letter that no operand has")
        require(len(set(result)) == len(result), f"{equation!r} repeats a result letter")
        require_same_dtype(**{f"operand_{index}": operand for index, operand in enumerate(operands)})
        return TensorType(tuple(sizes[letter] for letter in result), operands[0].dtype)

    def evaluate(self, *operands: Tensor, equation: str) -> Tensor:
        return torch.einsum(equation, *operands)

    def axes(self, operation: Operation) -> list[Tie]:
        terms, result = parse_equation(operation.attributes["equation"])
        first: dict[str, Axis] = {}
        ties = []
        for slot, term in [*enumerate(terms), (-1, result)]:
            for dim, letter in enumerate(term):
                axis = Axis(slot, dim)
                if first.setdefault(letter, axis) != axis:
                    ties.append(Tie(first[letter], axis))
        return ties

    def cost(self, operation: Operation) -> Cost:
        terms, _ = parse_equation(operation.attributes["equation"])
        sizes = {
            letter: size
            for slot, term in enumerate(terms)
            for letter, size in zip(term, operation.operand(slot).type.shape, strict=True)
        }
        return Cost(len(terms) * product(sizes.values()), moved_bytes(operation))


def parse_equation(equation: str) -> tuple[tuple[str, ...], str]:
    """("bij", "bjk"), "bik" of "bij,bjk->bik"."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    require(bool(arrow), f"equation {equation!r} must have an explicit result: 'ij,jk->ik'")
    terms = tuple(left.split(","))
    letters = "".join((*terms, right))
    require(
        letters == "" or (letters.isascii() and letters.isalpha()),
        f"equation {equation!r} may have letters only",
    )
    return terms, right


DEFINITIONS: tuple[OpDefinition, ...] = (Linear(), Matmul(), Conv(), ConvTranspose(), Einsum())
