"""Samples for the compiled operations: every type that each takes, and the values and shapes where code goes wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.backends.tvm.one_op import CONSTANTS, accepted
from tests.ir.samples import SAMPLES, Sample
from whet.ir import DType
from whet.ir.ops import CATALOGUE, elementwise
from whet.ir.ops.recurrent import Recurrent

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
TYPES = (*FLOATS, *INTEGERS, torch.bool)
NAN, INF = math.nan, math.inf

_generator = torch.Generator().manual_seed(1)
# The domains of functions that are not defined everywhere, or steep at the border of where they are.
_POSITIVE = frozenset({"log", "log2", "log10", "log1p", "sqrt", "rsqrt", "pow"})
_INSIDE_ONE = frozenset({"asin", "acos", "atanh", "tan"})
_DIVIDING = frozenset({"div", "floor_div", "trunc_div", "remainder", "fmod", "reciprocal"})


def data(dtype: torch.dtype, *shape: int, scale: float = 2.0) -> Tensor:
    """Random numbers of both signs, small enough for every type."""
    if dtype is torch.bool:
        return torch.rand(shape, generator=_generator) > 0.5
    if dtype.is_floating_point:
        return (torch.randn(shape, generator=_generator) * scale).to(dtype)
    return torch.randint(0 if dtype is torch.uint8 else -6, 7, shape, generator=_generator).to(dtype)


def _argument(name: str, dtype: torch.dtype, *shape: int) -> Tensor:
    x = data(dtype, *shape)
    if dtype is torch.bool:
        return x
    if name in _POSITIVE:
        return x.abs() + (0.25 if dtype.is_floating_point else 0)
    if name == "acosh":
        return x.abs() + 1
    if name in _INSIDE_ONE:
        return (x / 8).clamp(-0.9, 0.9) if dtype.is_floating_point else x
    if name in _DIVIDING and dtype.is_floating_point:
        return x + torch.sign(x)
    return x


def _divisor(name: str, dtype: torch.dtype, *shape: int) -> Tensor:
    y = _argument(name, dtype, *shape)
    if name == "pow" and not dtype.is_floating_point:
        return y
    return torch.where(y == 0, torch.full_like(y, 3), y) if dtype is not torch.bool else y


def _of_every_type() -> Iterator[Sample]:
    for name in [*elementwise._UNARY, *elementwise._UNARY_TO_BOOL]:
        for dtype in TYPES:
            yield Sample(name, (_argument(name, dtype, 5, 33),))
    for name in [*elementwise._BINARY, *elementwise._BINARY_TO_BOOL]:
        for dtype in TYPES:
            yield Sample(name, (_argument(name, dtype, 5, 33), _divisor(name, dtype, 1, 33)))
    attributed: tuple[tuple[str, dict[str, Any]], ...] = (
        ("clamp", {"minimum": 1}),
        ("clamp", {"minimum": 0, "maximum": 127}),
        ("clamp", {"minimum": 1, "maximum": 3}),
        ("clamp", {}),
        ("gelu", {}),
        ("gelu", {"approximate": "tanh"}),
        ("leaky_relu", {"slope": 0.2}),
        ("elu", {"alpha": 1.6, "scale": 1.05, "input_scale": 0.5}),
        ("softplus", {"beta": 2.0, "threshold": 1.0}),
    )
    for dtype in TYPES:
        yield Sample("where", (data(torch.bool, 5, 1), data(dtype, 5, 33), data(dtype, 33)))
        for name, attributes in attributed:
            yield Sample(name, (data(dtype, 5, 33),), attributes)
        for to in DType:
            x = data(dtype, 4, 17)
            yield Sample(
                "cast", (x.abs() if to is DType.U8 and dtype.is_floating_point else x,), {"dtype": to}, label=to.value
            )


def _special_values() -> Iterator[Sample]:
    x = torch.tensor([NAN, -INF, -1e30, -90.0, -20.0, -1.0, -1e-5, -0.0, 0.0, 1e-5, 0.5, 1.0, 20.0, 90.0, 1e30, INF])
    bounded = {"sin", "cos", "tan"}
    for name in [*elementwise._UNARY, *elementwise._UNARY_TO_BOOL]:
        yield Sample(name, (x.clamp(-1000, 1000) if name in bounded else x,), label="special")
    for name in ("maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge", "add", "mul", "logical_and", "logical_xor"):
        yield Sample(name, (x[:, None], x[None, :]), label="special")
    yield Sample("clamp", (x,), {"minimum": 0.0, "maximum": 1.0}, label="special")
    yield Sample("cast", (x,), {"dtype": DType.BOOL}, label="special")
    yield Sample("softmax", (torch.tensor([[1.0, -INF, 2.0], [NAN, 1.0, 2.0], [-INF, -INF, -INF]]),), {"axis": 1})
    rows = torch.tensor([[1.0, NAN, 3.0, NAN], [4.0, 2.0, 4.0, 2.0]])
    for name in ("amax", "amin", "any", "all"):
        yield Sample(name, (rows,), {"dims": (1,)}, label="special")
    for name in ("argmax", "argmin"):
        yield Sample(name, (rows,), {"dim": 1}, label="special")
    for name in ("cumsum", "cummax", "cummin", "logcumsumexp"):
        yield Sample(
            name, (torch.tensor([[-INF, -INF, 1.0, INF, 2.0], [1.0, 3.0, NAN, 2.0, 5.0]]),), {"dim": 1}, label="special"
        )
    for descending in (False, True):
        yield Sample("sort", (rows,), {"axis": 1, "descending": descending}, label="special")
    yield Sample("round", (torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]),), label="half")
    amounts = torch.tensor([-1, 0, 1, 31, 32, 40], dtype=torch.int32)
    for name in ("left_shift", "right_shift"):
        yield Sample(name, (torch.tensor([[5], [-5]], dtype=torch.int32), amounts), label="amounts")
    codes = torch.tensor([NAN, -INF, INF, 0.05, 0.15, 0.25, -0.05, 300.0, -300.0])
    for dtype in (DType.I8, DType.U8, DType.I4):
        parameters = (torch.tensor(0.1), torch.tensor(3, dtype=torch.int32))
        yield Sample("quantize", (codes, *parameters), {"dtype": dtype}, label=f"special-{dtype.value}")
    lowest = torch.tensor([-(2**31), 7, -7], dtype=torch.int32)
    for name in ("floor_div", "trunc_div", "remainder", "fmod"):
        yield Sample(name, (lowest[1:], torch.tensor([[2], [-2], [-1]], dtype=torch.int32)), label="signs")


def _along_dimensions() -> Iterator[Sample]:
    for dtype in TYPES:
        x = data(dtype, 4, 9, 6)
        for name in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"):
            yield Sample(name, (x,), {"dim": 1})
        for name in ("sum", "mean", "prod", "amax", "amin", "any", "all", "var"):
            yield Sample(name, (x.clamp(0, 2) if name == "prod" and dtype is not torch.bool else x,), {"dims": (0, 2)})
        for name in ("argmax", "argmin"):
            yield Sample(name, (x,), {"dim": 2, "keepdims": True})
        for axis in (0, 2):
            yield Sample("sort", (x,), {"axis": axis, "descending": axis == 2}, label=f"axis {axis}")
    for name in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"):
        for dim in (0, 2):
            yield Sample(name, (data(torch.float32, 7, 5, 6),), {"dim": dim}, label=f"dim {dim}")
    yield Sample("cumsum", (data(torch.float32, 300, 40),), {"dim": 0}, label="parallel")
    for k in (1, 5, 64, 80, 100):
        for largest in (True, False):
            yield Sample("topk", (torch.randperm(500, generator=_generator).reshape(5, 100).float(),),
                         {"axis": 1, "k": k, "largest": largest}, label=f"{k}")  # fmt: skip
    yield Sample(
        "topk", (torch.randperm(30, generator=_generator).reshape(6, 5),), {"axis": 0, "k": 3}, label="first axis"
    )
    yield Sample("sort", (data(torch.float32, 3000),), {"axis": 0}, label="long")


def _indexing() -> Iterator[Sample]:
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool):
        x = data(dtype, 4, 9, 6)
        for axis in range(3):
            kind = (torch.int64, torch.int32)[axis % 2]
            size = x.shape[axis]
            picked = torch.randint(0, size, (2, 3), generator=_generator).to(kind)
            yield Sample("take", (x, picked), {"axis": axis})
            yield Sample("take", (x, picked[0, 0]), {"axis": axis}, label="scalar")
            spread = torch.randint(0, size, (3, 7, 5), generator=_generator).to(kind)
            yield Sample("gather", (x, spread), {"axis": axis})
            shape = list(x.shape)
            shape[axis] = 5
            for reduction in ("add", "mul", "amin", "amax"):
                attributes = {"axis": axis, "reduction": reduction}
                yield Sample("scatter", (x, spread, data(dtype, 3, 7, 5)), attributes, label=reduction)
                rows = torch.randint(0, size, (5,), generator=_generator).to(kind)
                yield Sample("scatter_slices", (x, rows, data(dtype, *shape)), attributes, label=reduction)
            once = torch.randperm(size, generator=_generator)[:3].to(kind)
            shape[axis] = 3
            yield Sample("scatter_slices", (x, once, data(dtype, *shape)), {"axis": axis})
            index = once.reshape([-1 if d == axis else 1 for d in range(3)]).expand(shape)
            yield Sample("scatter", (x, index, data(dtype, *shape)), {"axis": axis})


def _pooling() -> Iterator[Sample]:
    window = {"kernel": (3, 2), "stride": (2, 2), "padding": ((1, 1), (0, 1))}
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        for layout in ("channels_first", "channels_last"):
            x = data(dtype, 2, 3, 9, 8)
            x = x if layout == "channels_first" else x.movedim(1, -1).contiguous()
            for name in ("max_pool", "max_pool_with_indices"):
                yield Sample(name, (x,), {**window, "dilation": (1, 2), "layout": layout})
                yield Sample(name, (x,), {**window, "dilation": (1, 1), "ceil": True, "layout": layout}, label="ceil")
            yield Sample("avg_pool", (x,), {**window, "ceil": True, "count_padding": False, "layout": layout})
            for name in ("adaptive_avg_pool", "adaptive_max_pool", "adaptive_max_pool_with_indices"):
                yield Sample(name, (x,), {"size": (4, 3), "layout": layout})
    lowest = torch.full((1, 2, 6, 6), -INF)
    yield Sample("max_pool_with_indices", (lowest,), {**window, "dilation": (1, 1)}, label="lowest")


def _resizing() -> Iterator[Sample]:
    systems = {"nearest": ("asymmetric", "half_pixel"), "linear": ("half_pixel", "align_corners")}
    for mode, coordinates in (*systems.items(), ("cubic", ("half_pixel", "align_corners"))):
        for system in coordinates:
            for spatial in (2,) if mode == "cubic" else (1, 2, 3):
                x, sizes = (
                    data(torch.float32, 2, 3, *(7, 9, 5)[:spatial]),
                    ((14, 5, 11)[:spatial], (3, 20, 1)[:spatial]),
                )
                attributes = {"mode": mode, "coordinates": system, "size": sizes[0]}
                yield Sample("resize", (x,), attributes, label=f"{mode}-{system}-{spatial}")
                yield Sample(
                    "resize", (x.bfloat16(),), {**attributes, "size": sizes[1]}, label=f"{mode}-{system}-{spatial}"
                )
                scales = (2.0, 0.6, 2.2)[:spatial]
                last = x.movedim(1, -1).contiguous()
                scaled = {**attributes, "scales": scales, "layout": "channels_last"}
                yield Sample("resize", (last,), scaled, label=f"{mode}-{system}-{spatial}-scales")
    for mode in ("nearest", "linear", "cubic"):
        for border in ("zeros", "border", "reflection"):
            for align in (False, True):
                x, grid = data(torch.float32, 2, 3, 6, 7), torch.rand(2, 4, 5, 2, generator=_generator) * 3 - 1.5
                attributes = {"mode": mode, "border": border, "align_corners": align}
                yield Sample("grid_sample", (x, grid), attributes, label=f"{mode}-{border}")
    x, grid = data(torch.float32, 2, 3, 6, 7, 5), torch.rand(2, 4, 5, 3, 3, generator=_generator) * 3 - 1.5
    yield Sample("grid_sample", (x, grid), {"border": "reflection"}, label="3d")


def recurrent(op: str, length: int, batch: int, units: int, dtype: torch.dtype = torch.float32,
              biases: bool = True, projection: int | None = None, **attributes: Any) -> Sample:  # fmt: skip
    """A layer whose inputs are multiplied already, with small random weights."""
    rows, outputs = {"lstm": 4, "gru": 3, "rnn": 1}[op] * units, projection or units

    def weight(*shape: int) -> Tensor:
        return data(dtype, *shape, scale=0.3)

    states = [weight(batch, outputs), *([weight(batch, units)] if op == "lstm" else [])]
    operands: list[Tensor | None] = [weight(length, batch, rows), *states, None, weight(rows, outputs)]
    operands += [None, weight(rows) if biases else None, *([] if projection is None else [weight(outputs, units)])]
    return Sample(op, tuple(operands), attributes, label=f"{length}x{batch}x{units}")


def recurrent_integer(op: str, length: int, batch: int, units: int) -> Sample:
    """A layer whose inputs are multiplied already, with random codes as weights."""
    gates, states = {"lstm_integer": (4, 2), "gru_integer": (3, 1)}[op]
    reals = [data(torch.float32, length, batch, gates * units, scale=0.5)]
    reals += [data(torch.float32, batch, units, scale=0.3) for _ in range(states)]
    codes = torch.randint(-128, 128, (gates * units, units), generator=_generator).to(torch.int8)
    multiplier = torch.rand(gates * units, generator=_generator) / 5e4
    bias = [data(torch.float32, gates * units)] if op == "gru_integer" and batch > 1 else []
    operands = (*reals, codes, multiplier, torch.tensor(1 / 127), *bias)
    return Sample(op, operands, label=f"{length}x{batch}x{units}")


def _recurrent() -> Iterator[Sample]:
    for op in ("lstm", "gru", "rnn"):
        for sizes in ((5, 3, 6), (3, 1, 40), (4, 4, 33), (3, 2, 64)):
            yield recurrent(op, *sizes)
        yield recurrent(op, 2, 2, 5, biases=False)
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            yield recurrent(op, 4, 2, 20, dtype)
    yield recurrent("rnn", 4, 3, 6, activation="relu")
    yield recurrent("lstm", 4, 3, 20, projection=7)
    yield recurrent("lstm", 4, 2, 7, biases=False, projection=33)
    for op in ("lstm_integer", "gru_integer"):
        for sizes in ((5, 3, 6), (3, 1, 40), (4, 4, 33), (3, 2, 64), (0, 2, 5)):
            yield recurrent_integer(op, *sizes)


def _odd_shapes() -> Iterator[Sample]:
    """No dimension at all, sizes of one, and sizes of zero."""
    for shape in ((), (1,), (1, 1, 1), (0,), (3, 0)):
        x = data(torch.float32, *shape)
        rank = len(shape)
        for name in ("neg", "exp", "isnan"):
            yield Sample(name, (x,), label=f"{shape}")
        yield Sample("add", (x, x), label=f"{shape}")
        yield Sample("transpose", (x,), {"permutation": tuple(reversed(range(rank)))}, label=f"{shape}")
        yield Sample("broadcast_to", (x,), {"shape": (2, *shape)}, label=f"{shape}")
        yield Sample("sum", (x,), {"dims": tuple(range(rank))}, label=f"{shape}")
        if rank:
            yield Sample("sort", (x,), {"axis": 0}, label=f"{shape}")
            yield Sample("cumsum", (x,), {"dim": rank - 1}, label=f"{shape}")
            yield Sample("concat", (x, x), {"axis": 0}, label=f"{shape}")
            yield Sample("flip", (x,), {"dims": (0,)}, label=f"{shape}")
            yield Sample("softmax", (x,), {"axis": rank - 1}, label=f"{shape}")
    yield Sample("softmax", (data(torch.float32),), {"axis": 0}, label="scalar")
    yield Sample("topk", (data(torch.float32, 3, 4),), {"axis": 1, "k": 0}, label="none")
    yield Sample("matmul", (data(torch.float32, 3, 0), data(torch.float32, 0, 4)), label="empty sum")
    yield from _empty_sums()
    yield Sample("take", (data(torch.float32, 5, 2), torch.zeros(0, dtype=torch.int64)), {"axis": 0}, label="none")
    yield Sample("slice", (data(torch.float32, 5),), {"starts": (2,), "stops": (2,), "steps": (1,)}, label="none")


def _empty_sums() -> Iterator[Sample]:
    """Contractions over no channel at all, which leave the bias."""
    bias, window = data(torch.float32, 5), {"stride": (1, 1), "dilation": (1, 1)}
    for dtype in FLOATS:
        yield Sample("linear", (data(dtype, 3, 0), data(dtype, 5, 0), bias.to(dtype)), label="empty sum")
    yield Sample("linear", (data(torch.float32, 3, 0), data(torch.float32, 5, 0)), label="empty sum, no bias")
    for layout, shape in (("channels_first", (2, 0, 4, 4)), ("channels_last", (2, 4, 4, 0))):
        x, attributes = data(torch.float32, *shape), {**window, "layout": layout}
        padded = {**attributes, "padding": ((1, 1), (0, 1))}
        yield Sample("conv", (x, data(torch.float32, 5, 0, 3, 3), bias), padded, label="empty sum")
        up = {**attributes, "padding": (0, 0), "output_padding": (0, 0)}
        yield Sample("conv_transpose", (x, data(torch.float32, 0, 5, 3, 3), bias), up, label="empty sum")
    codes = data(torch.uint8, 3, 0), data(torch.int8, 5, 0), data(torch.int32, 5)
    yield Sample("linear_integer", codes, {"x_zero_point": 7}, label="empty sum")


def _samples_of_the_ir() -> Iterator[Sample]:
    for sample in SAMPLES:
        if sample.op not in REMOVED and not _has_projection(sample):
            types = FLOATS[1:] if sample.op not in {item.op for item in ELEMENTWISE} else FLOATS[1:2]
            own = {"quantize", "dequantize", "requantize", "dequantize_blocks", *CONSTANTS}
            yield from (sample.cast(dtype) for dtype in (types if sample.op not in own else FLOATS[1:2]))


def _has_projection(sample: Sample) -> bool:
    """Whether it is a recurrent layer that multiplies its inputs, which preparation takes out."""
    definition = CATALOGUE[sample.op]
    return isinstance(definition, Recurrent) and sample.operands[1 + definition.states] is not None


REMOVED = frozenset({"constant", "attention", "fake_quantize"})
"""Operations that need no lowering: constants are weights; attention and fake_quantize are decomposed before."""

ELEMENTWISE = tuple(sample for sample in _of_every_type() if accepted(sample))
FAMILIES = {
    "elementwise": lambda: ELEMENTWISE,
    "special values": _special_values,
    "along dimensions": _along_dimensions,
    "indexing": _indexing,
    "pooling": _pooling,
    "resizing": _resizing,
    "recurrent": _recurrent,
    "odd shapes": _odd_shapes,
    "samples of the IR": _samples_of_the_ir,
}
CASES: dict[str, tuple[Sample, ...]] = {
    name: tuple(sample for sample in family() if accepted(sample)) for name, family in FAMILIES.items()
}
"""Every case that the reference can compute, by family."""
