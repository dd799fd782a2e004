"""Operators that move elements further than a view: padding, repeating, windows, diagonals, pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.frontend.context import Context, Operand
from whet.frontend.converters.common import aligned, index_constant, iota, static, unsupported
from whet.frontend.converters.convolution import spread
from whet.frontend.converters.shape import slice_dim
from whet.ir.dimensions import Dim, simplify_dim
from whet.ir.graph import Value
from whet.ir.types import DType

aten = torch.ops.aten

Pairs = list[tuple[Dim, Dim]]


# padding


def _pairs(rank: int, flat: Sequence[Any]) -> Pairs:
    """torch's flat list, last dimension first, as one (low, high) pair a dimension."""
    given = list(zip(flat[::2], flat[1::2], strict=True))[::-1]
    return [(0, 0)] * (rank - len(given)) + given


def _pad(c: Context, x: Value, flat: Sequence[Any], mode: str = "constant", value: Operand | None = None) -> Value:
    pairs = _pairs(x.type.rank, flat)
    if mode == "constant":
        return _constant_pad(c, x, pairs, 0 if value is None else value)
    grown = tuple((_grown(low), _grown(high)) for low, high in pairs)
    if mode == "circular":
        # what has been taken away does not come round again
        x, pairs = _crop(c, x, pairs), []
    result = x if _is_nothing(grown) else c.pad(x, padding=grown, mode=mode)
    return _crop(c, result, pairs)


def _constant_pad(c: Context, x: Value, pairs: Pairs, value: Operand) -> Value:
    """Cropped before it grows; a value that is a tensor becomes a select."""
    if isinstance(value, Value):
        raise unsupported(c, "the padding value must be a number")
    x = _crop(c, c.cast(x, c.dtype), pairs)
    grown = tuple((_grown(low), _grown(high)) for low, high in pairs)
    if _is_nothing(grown):
        return x
    number = float(value) if c.dtype.is_float else int(value)
    result: Value = c.pad(x, padding=grown, mode="constant", value=number)
    return result


def _grown(amount: Dim) -> Dim:
    return max(amount, 0) if isinstance(amount, int) else amount


def _is_nothing(pairs: Sequence[tuple[Dim, Dim]]) -> bool:
    return all(amount == 0 for pair in pairs for amount in pair)


def _crop(c: Context, x: Value, pairs: Pairs) -> Value:
    """Negative amounts take away."""
    for dim, (low, high) in enumerate(pairs):
        start = -low if isinstance(low, int) and low < 0 else 0
        stop = x.type.shape[dim] + high if isinstance(high, int) and high < 0 else x.type.shape[dim]
        x = slice_dim(c, x, dim, start, stop)
    return x


def _constant_pad_nd(c: Context, x: Value, flat: Sequence[Any], value: Operand = 0) -> Value:
    return _pad(c, x, flat, "constant", value)


def _bordered(mode: str) -> Callable[..., Value]:
    def convert(c: Context, x: Value, flat: Sequence[Any]) -> Value:
        return _pad(c, x, flat, mode)

    return convert


# order and repetition


def _roll(c: Context, x: Value, shifts: Any, dims: Any = ()) -> Value:
    """The last `shift` slices come first; without dims, on the flattened elements."""
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    if not dims:
        flat = c.reshape_to(x, (x.type.numel,))
        return c.reshape_to(_roll_dim(c, flat, shifts[0], 0), x.type.shape)
    for shift, dim in zip(shifts, [dims] if isinstance(dims, int) else dims, strict=True):
        x = _roll_dim(c, x, shift, c.dim(dim, x.type.rank))
    return x


def _roll_dim(c: Context, x: Value, shift: Any, dim: int) -> Value:
    if x.type.rank == 0 or x.type.shape[dim] == 0:
        return x
    size = x.type.shape[dim]
    if isinstance(size, int) and isinstance(shift, int):
        shift %= size
    if shift == 0:
        return x
    # a negative shift of a symbolic dimension moves its first slices to the end
    cut = -shift if isinstance(shift, int) and shift < 0 else simplify_dim(size - shift)
    result: Value = c.concat(slice_dim(c, x, dim, cut, size), slice_dim(c, x, dim, 0, cut), axis=dim)
    return result


def _flip(c: Context, x: Value, dims: Sequence[int]) -> Value:
    axes = c.dims(list(dims), x.type.rank)
    result: Value = c.flip(x, dims=axes) if axes else x
    return result


def _repeat(c: Context, x: Value, repeats: Sequence[Any]) -> Value:
    """Every dimension [n] becomes [1, n], is broadcast to [r, n] and merged."""
    padded = (1,) * (len(repeats) - x.type.rank) + x.type.shape
    paired = [size for item in padded for size in (1, item)]
    tiled = [size for pair in zip(repeats, padded, strict=True) for size in pair]
    return _broadcast_merge(c, x, paired, tiled)


def _repeat_interleave(c: Context, x: Value, repeats: Any, dim: int | None = None, *_: Any) -> Value:
    """Every dimension [n] becomes [n, 1], is broadcast to [n, r] and merged."""
    if dim is None:
        x, dim = c.reshape_to(x, (x.type.numel,)), 0
    dim = c.dim(dim, x.type.rank)
    before, size, after = x.type.shape[:dim], x.type.shape[dim], x.type.shape[dim + 1 :]
    return _broadcast_merge(c, x, [*before, size, 1, *after], [*before, size, repeats, *after])


def _broadcast_merge(c: Context, x: Value, grown: Sequence[Dim], target: Sequence[Dim]) -> Value:
    spread_out = c.broadcast_to(c.reshape_to(x, grown), shape=tuple(target))
    return c.reshape_to(spread_out, c.shape)


def _repeat_interleave_tensor(
    c: Context, x: Value, repeats: Value, dim: int | None = None, output_size: Any = None
) -> Value:
    """Element i `repeats[i]` times: result element j is the element before whose end j lies."""
    if dim is None:
        x, dim = c.reshape_to(x, (x.type.numel,)), 0
    dim = c.dim(dim, x.type.rank)
    size, count = x.type.shape[dim], c.shape[dim]
    repeats = c.broadcast_to(c.cast(c.reshape_to(repeats, (repeats.type.numel,)), DType.I64), shape=(size,))
    ends = aligned(c, c.cumsum(repeats, dim=0), 1, 2)
    passed = c.le(ends, aligned(c, iota(c, count), 0, 2))
    index = c.sum(c.cast(passed, DType.I64), dims=(1,), keepdims=False)
    result: Value = c.take(x, index, axis=dim)
    return result


# parts that are written


def _slice_scatter(
    c: Context, x: Value, source: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    """x with a slice replaced: the parts before and after it, around the source."""
    dim = c.dim(dim, x.type.rank)
    size = x.type.shape[dim]
    first, last = _clamped(start, size, 0), _clamped(end, size, size)
    source = c.cast(source, c.dtype)
    length = source.type.shape[dim]
    if step != 1:
        index = c.iota(length=length, start=first, step=step, dtype=DType.I64)
        written: Value = c.scatter_slices(x, index, source, axis=dim, reduction="replace")
        return written
    if isinstance(first, int) and isinstance(last, int) and last <= first:
        return x
    parts = [slice_dim(c, x, dim, 0, first), source, slice_dim(c, x, dim, simplify_dim(first + length), size)]
    full = [part for part in parts if part.type.shape[dim] != 0]
    result: Value = full[0] if len(full) == 1 else c.concat(*full, axis=dim)
    return result


def _clamped(index: Any, size: Dim, default: Dim) -> Dim:
    if index is None:
        return default
    if isinstance(index, int) and index < 0:
        moved = simplify_dim(size + index)
        return max(moved, 0) if isinstance(moved, int) else moved
    if isinstance(index, int) and index >= 2**62:
        return size
    return min(index, size) if isinstance(index, int) and isinstance(size, int) else index


def _select_scatter(c: Context, x: Value, source: Value, dim: int, index: Any) -> Value:
    dim = c.dim(dim, x.type.rank)
    first = _clamped(index, x.type.shape[dim], 0)
    shape = (*x.type.shape[:dim], 1, *x.type.shape[dim + 1 :])
    return _slice_scatter(c, x, c.reshape_to(source, shape), dim, first, simplify_dim(first + 1))


# windows


def _window_index(c: Context, size: Dim, count: Dim, step: int, window: int, dilation: int = 1) -> Value:
    """[count, window]: where each element of each window is in the dimension."""
    starts = torch.arange(static(c, count, "the number of windows")) * step
    return index_constant(c, starts[:, None] + torch.arange(window) * dilation)


def _unfold(c: Context, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows along one dimension, each as a new last dimension."""
    if x.type.rank == 0:
        return c.reshape_to(x, c.shape)
    dim = c.dim(dim, x.type.rank)
    if step >= size and isinstance(count := c.shape[dim], int) and x.type.shape[dim] == count * step:
        parts = c.reshape(x, shape=(*x.type.shape[:dim], count, step, *x.type.shape[dim + 1 :]))
        windows = slice_dim(c, parts, dim + 1, 0, size)
    else:
        index = _window_index(c, x.type.shape[dim], c.shape[dim], step, size)
        windows = c.take(x, index, axis=dim)
    rank = windows.type.rank
    order = [axis for axis in range(rank) if axis != dim + 1]
    result: Value = c.transpose(windows, permutation=(*order, dim + 1))
    return result


def _im2col(
    c: Context,
    x: Value,
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Value:
    """[N, C, H, W] to [N, C · kh · kw, windows]: the patches that a convolution multiplies."""
    x = x if x.type.rank == 4 else c.reshape(x, shape=(1, *x.type.shape))
    low = spread(padding, 2)
    if any(low):
        x = c.pad(x, padding=((0, 0), (0, 0), (low[0], low[0]), (low[1], low[1])))
    for axis, (window, gap, step) in enumerate(
        zip(spread(kernel, 2), spread(dilation, 2), spread(stride, 2), strict=True)
    ):
        dim = 2 + 2 * axis
        count = (static(c, x.type.shape[dim], "the image") - gap * (window - 1) - 1) // step + 1
        x = c.take(x, _window_index(c, x.type.shape[dim], count, step, window, gap), axis=dim)
    # [N, C, rows, kh, columns, kw]
    return c.reshape_to(c.transpose(x, permutation=(0, 1, 3, 5, 2, 4)), c.shape)


def _col2im(
    c: Context,
    x: Value,
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Value:
    """The sum of overlapping patches, the transpose of im2col."""
    windows, gaps, steps, low = (spread(item, 2) for item in (kernel, dilation, stride, padding))
    batch = x.type.shape[0] if x.type.rank == 3 else 1
    channels = c.shape[-3]
    padded = [int(length) + 2 * border for length, border in zip(size, low, strict=True)]
    counts = [
        (length - gap * (window - 1) - 1) // step + 1
        for length, window, gap, step in zip(padded, windows, gaps, steps, strict=True)
    ]
    shape = (batch, channels, windows[0], windows[1], counts[0], counts[1])
    x = c.transpose(c.reshape(x, shape=shape), permutation=(0, 1, 4, 2, 5, 3))
    for axis in range(2):
        dim = 2 + axis
        flat = c.reshape(x, shape=(*x.type.shape[:dim], counts[axis] * windows[axis], *x.type.shape[dim + 2 :]))
        index = _window_index(c, padded[axis], counts[axis], steps[axis], windows[axis], gaps[axis])
        empty = c.full(
            shape=(*flat.type.shape[:dim], padded[axis], *flat.type.shape[dim + 1 :]),
            value=0.0,
            dtype=c.dtype,
        )
        vector = c.reshape_to(index, (counts[axis] * windows[axis],))
        x = c.scatter_slices(empty, vector, flat, axis=dim, reduction="add")
        x = slice_dim(c, x, dim, low[axis], low[axis] + int(size[axis]))
    return c.reshape_to(x, c.shape)


# diagonals and triangles


def _matrices_last(c: Context, x: Value, first: int, second: int) -> Value:
    """x with dimensions `first` and `second` moved to the end."""
    rank = x.type.rank
    first, second = c.dim(first, rank), c.dim(second, rank)
    order = [dim for dim in range(rank) if dim not in (first, second)]
    permutation = (*order, first, second)
    result: Value = x if permutation == tuple(range(rank)) else c.transpose(x, permutation=permutation)
    return result


def _diagonal_bounds(rows: int, columns: int, offset: int) -> tuple[int, int]:
    """First position and length of a diagonal in a flattened matrix."""
    length = max(min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns), 0)
    return (offset if offset >= 0 else -offset * columns), length


def _flat_matrices(c: Context, x: Value) -> tuple[Value, int, int]:
    """x [..., rows, columns] as [..., rows · columns]."""
    rows, columns = (static(c, size, "the matrix") for size in x.type.shape[-2:])
    return c.reshape(x, shape=(*x.type.shape[:-2], rows * columns)), rows, columns


def _diagonal(c: Context, x: Value, offset: int = 0, first: int = 0, second: int = 1) -> Value:
    """Every (columns + 1)-th element of the flattened matrix."""
    flat, rows, columns = _flat_matrices(c, _matrices_last(c, x, first, second))
    start, length = _diagonal_bounds(rows, columns, offset)
    if length == 0:
        return slice_dim(c, flat, flat.type.rank - 1, 0, 0)
    return slice_dim(c, flat, flat.type.rank - 1, start, start + (length - 1) * (columns + 1) + 1, columns + 1)


def _diagonal_scatter(c: Context, x: Value, source: Value, offset: int = 0, first: int = 0, second: int = 1) -> Value:
    rank = x.type.rank
    moved = _matrices_last(c, x, first, second)
    flat, rows, columns = _flat_matrices(c, moved)
    start, length = _diagonal_bounds(rows, columns, offset)
    index = index_constant(c, start + torch.arange(length) * (columns + 1))
    written = c.scatter_slices(flat, index, source, axis=rank - 2, reduction="replace")
    back = [dim for dim in range(rank) if dim not in (c.dim(first, rank), c.dim(second, rank))]
    order = (*back, c.dim(first, rank), c.dim(second, rank))
    inverse = tuple(order.index(dim) for dim in range(rank))
    result: Value = c.transpose(c.reshape(written, shape=moved.type.shape), permutation=inverse)
    return result


def _diag_embed(c: Context, x: Value, offset: int = 0, first: int = -2, second: int = -1) -> Value:
    """x on a diagonal, zero elsewhere, in two new dimensions."""
    rank = x.type.rank + 1
    first, second = first % rank, second % rank
    size = c.shape[first]
    length = x.type.shape[-1]
    low = (0, offset) if offset >= 0 else (-offset, 0)
    # along the second new dimension each element stands at its column
    column = c.pad(x, padding=(*((0, 0),) * (x.type.rank - 1), (low[1], simplify_dim(size - length - low[1]))))
    wide = c.reshape(column, shape=(*x.type.shape[:-1], 1, size))
    rows = c.add(aligned(c, iota(c, size), 0, 2), offset)
    mask = c.eq(rows, aligned(c, iota(c, size), 1, 2))
    matrix = c.where(mask, wide, c.operand(0, c.dtype))
    others = iter(range(rank - 2))
    places = {first: rank - 2, second: rank - 1}
    permutation = tuple(places[dim] if dim in places else next(others) for dim in range(rank))
    result: Value = matrix if permutation == tuple(range(rank)) else c.transpose(matrix, permutation=permutation)
    return result


def _triangle(lower: bool) -> Callable[..., Value]:
    def convert(c: Context, x: Value, diagonal: int = 0) -> Value:
        result: Value = c.triangle(x, lower=lower, diagonal=diagonal)
        return result

    return convert


def _trace(c: Context, x: Value) -> Value:
    result: Value = c.sum(c.cast(_diagonal(c, x), c.dtype), dims=(0,), keepdims=False)
    return result


# pixels


def _pixel_shuffle(c: Context, x: Value, factor: int) -> Value:
    """[..., C · r · r, H, W] to [..., C, H · r, W · r]."""
    *batch, channels, height, width = x.type.shape
    inner = c.reshape(x, shape=(*batch, channels // (factor * factor), factor, factor, height, width))
    at = len(batch)
    order = (*range(at), at, at + 3, at + 1, at + 4, at + 2)
    return c.reshape_to(c.transpose(inner, permutation=order), c.shape)


def _pixel_unshuffle(c: Context, x: Value, factor: int) -> Value:
    """[..., C, H · r, W · r] to [..., C · r · r, H, W]."""
    *batch, channels, height, width = c.shape
    inner = c.reshape(x, shape=(*batch, channels // (factor * factor), height, factor, width, factor))
    at = len(batch)
    order = (*range(at), at, at + 2, at + 4, at + 1, at + 3)
    return c.reshape_to(c.transpose(inner, permutation=order), c.shape)


def _channel_shuffle(c: Context, x: Value, groups: int) -> Value:
    batch, channels, *spatial = x.type.shape
    inner = c.reshape(x, shape=(batch, groups, channels // groups, *spatial))
    order = (0, 2, 1, *range(3, 3 + len(spatial)))
    return c.reshape_to(c.transpose(inner, permutation=order), c.shape)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _constant_pad_nd,
    aten.reflection_pad1d.default: _bordered("reflect"),
    aten.reflection_pad2d.default: _bordered("reflect"),
    aten.reflection_pad3d.default: _bordered("reflect"),
    aten.replication_pad1d.default: _bordered("replicate"),
    aten.replication_pad2d.default: _bordered("replicate"),
    aten.replication_pad3d.default: _bordered("replicate"),
    aten._pad_circular.default: _bordered("circular"),
    aten.roll.default: _roll,
    aten.flip.default: _flip,
    aten.repeat.default: _repeat,
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.repeat_interleave.self_Tensor: _repeat_interleave_tensor,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.diagonal_scatter.default: _diagonal_scatter,
    aten.unfold.default: _unfold,
    aten.im2col.default: _im2col,
    aten.col2im.default: _col2im,
    aten.diagonal.default: _diagonal,
    aten.diag_embed.default: _diag_embed,
    aten.tril.default: _triangle(lower=True),
    aten.triu.default: _triangle(lower=False),
    aten.trace.default: _trace,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
    aten.channel_shuffle.default: _channel_shuffle,
}
