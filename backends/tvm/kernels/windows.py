"""Sliding windows over channels-last tensors: output extents, tile padding, and the input they read."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import te, tirx

from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.expressions import Dimension, Expression, extent

Padding = Sequence[tuple[int, int]]
Read = Callable[[Sequence[Expression]], Expression]
"""What a tensor, or what stands for one, holds at an index."""


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or a pooling: one entry a spatial axis, padding as (before, after)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @property
    def pointwise(self) -> bool:
        """Whether each output reads exactly the input at its own position."""
        return all(size == 1 for size in self.kernel) and all(step == 1 for step in self.stride) and not self.padded

    @property
    def padded(self) -> bool:
        """Whether any axis has padding."""
        return any(before or after for before, after in self.padding)

    def leading(self, count: int) -> Window:
        """The first `count` spatial axes."""
        return Window(self.kernel[:count], self.stride[:count], self.padding[:count], self.dilation[:count])

    def output_extent(self, axis: int, size: Dimension) -> Dimension:
        """Outputs along spatial `axis` for an input of `size` elements there."""
        span = (self.kernel[axis] - 1) * self.dilation[axis] + 1
        before, after = self.padding[axis]
        return floordiv(size + (before + after - span), self.stride[axis]) + 1

    def output_extents(self, spatial: Sequence[Dimension]) -> tuple[Dimension, ...]:
        """Outputs along every spatial axis."""
        return tuple(self.output_extent(axis, size) for axis, size in enumerate(spatial))


def window(
    kernel: Sequence[int],
    stride: Sequence[int] | None = None,
    padding: Padding | None = None,
    dilation: Sequence[int] | None = None,
) -> Window:
    """A `Window` whose missing fields are stride 1, no padding, dilation 1."""
    rank = len(kernel)
    return Window(
        tuple(kernel),
        tuple(stride) if stride is not None else (1,) * rank,
        tuple((before, after) for before, after in padding) if padding is not None else ((0, 0),) * rank,
        tuple(dilation) if dilation is not None else (1,) * rank,
    )


def floordiv(value: Dimension, divisor: int) -> Dimension:
    """`value // divisor` for an int as for a symbolic expression."""
    known = extent(value)
    if known is not None:
        return known // divisor
    return tirx.floordiv(value, divisor)


def ceil_to(size: Dimension, step: int) -> Dimension:
    """The least multiple of `step` that is not below `size`."""
    return floordiv(size + (step - 1), step) * step


def clamped(index: Expression, size: Dimension, reach: Dimension) -> Expression:
    """`index` held below `size`; unchanged where `reach`, the positions asked for, never exceeds it.

    Rows past the end of a tensor are computed from its last row and thrown away: cheaper in an inner loop
    than a test.
    """
    known, asked = extent(size), extent(reach)
    if known is not None and asked is not None and asked <= known:
        return index
    return tirx.min(index, size - 1)


@dataclass(frozen=True)
class Border:
    """The spatial extents of a padded input (`sizes`) and where each of its elements comes from."""

    spatial: tuple[Dimension, ...]
    befores: tuple[int, ...]
    sizes: tuple[Dimension, ...]

    def source(self, positions: Sequence[Expression]) -> tuple[list[Expression], list[Expression]]:
        """Conditions for a position to lie inside the input, and the position there."""
        inside: list[Expression] = []
        shifted: list[Expression] = []
        for position, before, size, grown in zip(positions, self.befores, self.spatial, self.sizes, strict=True):
            shifted.append(position if before == 0 else position - before)
            if before:
                inside.append(position >= before)
            reach, known = extent(grown), extent(size)
            if reach is None or known is None or reach > known + before:
                inside.append(position < size + before)
        return inside, shifted


def border(spatial: Sequence[Dimension], geometry: Window, outputs: Sequence[Dimension]) -> Border:
    """The padded input that `outputs` windows an axis read: as far to the right as they reach, no further."""
    sizes = [
        (count - 1) * stride + (kernel - 1) * dilation + 1
        for count, stride, kernel, dilation in zip(
            outputs, geometry.stride, geometry.kernel, geometry.dilation, strict=True
        )
    ]
    return Border(tuple(spatial), tuple(before for before, _ in geometry.padding), tuple(sizes))


def padded_input(
    x: te.Tensor, geometry: Window, outputs: Sequence[Dimension], value: Expression | None, name: str
) -> te.Tensor:
    """`x[N, *spatial, C]` grown by the padding, and so far to the right as `outputs` windows reach.

    `value` fills the border (None: zero of x's dtype).
    """
    fill = tirx.const(0, x.dtype) if value is None else value
    grown = border(x.shape[1:-1], geometry, outputs)

    def element(*index: Expression) -> Expression:
        inside, shifted = grown.source(index[1:-1])
        source = x[(index[0], *shifted, index[-1])]
        return tirx.if_then_else(tirx.all(*inside), source, fill) if inside else source

    return te.compute((x.shape[0], *grown.sizes, x.shape[-1]), element, name=name, attrs=roles.stage())


def _masked_input(x: te.Tensor, grown: Border, value: Expression | None) -> Read:
    """What `padded_input` holds at an index, read from `x[N, *spatial, C]` itself: nothing is copied.

    Positions on the border read an element inside that a mask then replaces, one mask for a whole vector of channels.
    """
    fill = tirx.const(0, x.dtype) if value is None else value

    def element(index: Sequence[Expression]) -> Expression:
        inside, shifted = grown.source(index[1:-1])
        held = [tirx.max(tirx.min(at, size - 1), 0) for at, size in zip(shifted, grown.spatial, strict=True)]
        source = x[(index[0], *held, index[-1])]
        return tirx.Select(tirx.all(*inside), source, fill) if inside else source

    return element


def windowed(
    x: te.Tensor,
    geometry: Window,
    outputs: Sequence[Dimension],
    value: Expression | None,
    name: str,
    masked: bool = False,
) -> tuple[Read, list[Dimension]]:
    """What windows read at an index, and the spatial extents to clamp indices to.

    Without padding that is `x` itself, else a padded copy, or (`masked`) x under masks; `outputs` are the output
    extents rounded up to whole tiles.
    """
    if masked and geometry.padded:
        grown = border(x.shape[1:-1], geometry, outputs)
        return _masked_input(x, grown, value), list(grown.sizes)
    source = padded_input(x, geometry, outputs, value, f"{name}_pad") if geometry.padded else x
    return lambda index: source[tuple(index)], list(source.shape[1:-1])


def window_index(
    geometry: Window,
    outputs: Sequence[Dimension],
    limits: Sequence[Dimension],
    positions: Sequence[Expression],
    taps: Sequence[Expression],
) -> list[Expression]:
    """Input position of each spatial axis for output `positions` and kernel `taps`."""
    index = []
    for axis, (position, tap) in enumerate(zip(positions, taps, strict=True)):
        stride, dilation = geometry.stride[axis], geometry.dilation[axis]
        reach = operator.add((outputs[axis] - 1) * stride + (geometry.kernel[axis] - 1) * dilation, 1)
        source = position * stride + tap * dilation
        index.append(clamped(source, limits[axis], reach))
    return index
