"""Kernels written as loops, for what no tensor expression says well: scans, sorts, scatters, recurrences.

Such a kernel is one opaque stage: no rule schedules it, so it holds its own parallel and vector loops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

Body = Callable[[Sequence[Any], Sequence[Any]], None]
"""Writes the loops, given the buffers of the inputs and of the results."""

# Below this many steps, waking the other threads costs more than they save.
_WORTH_PARALLEL = 8 * 1024


def loops(
    shapes: Sequence[Sequence[Any]], dtypes: Sequence[str], inputs: Sequence[te.Tensor], body: Body, name: str
) -> list[te.Tensor]:
    """One stage with a result for each of `shapes` and `dtypes`, computed by the loops that `body` writes.

    A result that the caller does not hand on is scratch memory of the kernel.
    """
    outputs = [
        tirx.decl_buffer(shape, dtype, f"{name}_{slot}", layout=None)
        for slot, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    ]

    def statement(ins: Sequence[Any], outs: Sequence[Any]) -> Any:
        with IRBuilder() as builder:
            with T.attr(0, "whet.loops", True):
                body(ins, outs)
            return builder.get()

    results = te.extern(
        [list(shape) for shape in shapes],
        list(inputs),
        statement,
        name=name,
        dtype=list(dtypes),
        out_buffers=outputs,
    )
    return list(results) if isinstance(results, (list, tuple)) or len(shapes) > 1 else [results]


@contextmanager
def nest(extents: Sequence[Any]) -> Iterator[list[Any]]:
    """Serial loops, outermost first; the list of their variables."""
    with ExitStack() as stack:
        yield [stack.enter_context(T.serial(0, _wide(extent))) for extent in extents]


@contextmanager
def parallel_nest(extents: Sequence[Any], steps: Any = 1) -> Iterator[list[Any]]:
    """Loops fused into one parallel loop, where it pays; each turn does about `steps` steps.

    The list of their variables. A symbolic number of turns counts as enough.
    """
    sizes = [extent_of(extent) for extent in (*extents, steps)]
    work = math.prod(size for size in sizes if size is not None)
    if None not in sizes and work < _WORTH_PARALLEL:
        with nest(extents) as variables:
            yield variables
        return
    total: Any = tirx.IntImm("int64", 1)
    for extent in extents:
        total = total * extent
    with T.parallel(0, _wide(total)) as turn:
        yield unravel(turn, extents)


def extent_of(extent: Any) -> int | None:
    """The integer value of an extent, None where it is symbolic."""
    if isinstance(extent, int):
        return extent
    return int(extent.value) if isinstance(extent, tirx.IntImm) else None


def _wide(extent: Any) -> Any:
    return tirx.IntImm("int64", extent) if isinstance(extent, int) else extent.astype("int64")


def ravel(index: Sequence[Any], shape: Sequence[Any]) -> Any:
    """The row-major offset of an index."""
    offset: Any = tirx.IntImm("int64", 0)
    for position, size in zip(index, shape, strict=True):
        offset = offset * size + position
    return offset


def unravel(offset: Any, shape: Sequence[Any]) -> list[Any]:
    """The index of a row-major offset."""
    index: list[Any] = []
    for dim, size in reversed(list(enumerate(shape))):
        index.append(tirx.indexmod(offset, size) if dim else offset)
        offset = tirx.indexdiv(offset, size)
    return index[::-1]


def store(buffer: Any, index: Sequence[Any], value: Any) -> None:
    """buffer[index] = value."""
    T.buffer_store(buffer, value, list(index) or [0] * len(buffer.shape))


def load(buffer: Any, index: Sequence[Any]) -> Any:
    """buffer[index]."""
    return tirx.BufferLoad(buffer, list(index) or [0] * len(buffer.shape))


class Variable:
    """A number that changes as the loops run."""

    def __init__(self, initial: Any, dtype: str) -> None:
        self._buffer = T.alloc_buffer((1,), dtype, scope="local", layout=None)
        self.set(initial)

    @property
    def value(self) -> Any:
        """The number now."""
        return tirx.BufferLoad(self._buffer, [0])

    def set(self, value: Any) -> None:
        """Change it."""
        T.buffer_store(self._buffer, value, [0])


def inserted(index: Sequence[Any], axis: int, position: Any) -> list[Any]:
    """An index with one more dimension, `position` at `axis`."""
    return [*index[:axis], position, *index[axis:]]
