"""One row of operands and attributes for each way to use an operation; the generic tests of operations run
over them.

The size 7 stands for a batch and 11 for a length: the symbolic tests put symbols in their places, so no other
dimension has these sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from whet.ir import DType, TensorType
from whet.ir.ops import elementwise
from whet.ir.ops.resize import MODES

BATCH, LENGTH = 7, 11


@dataclass(frozen=True)
class Sample:
    """Operands (float64 where they are floating point) and attributes of one application of an operation."""

    op: str
    operands: tuple[Tensor | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    i4: tuple[int, ...] = ()
    """Slots of operands that are i4."""
    label: str = ""

    @property
    def id(self) -> str:
        return f"{self.op}-{self.label}" if self.label else self.op

    def types(self) -> list[TensorType | None]:
        """Types of the operands."""
        return [None if item is None else self._type(slot, item) for slot, item in enumerate(self.operands)]

    def _type(self, slot: int, tensor: Tensor) -> TensorType:
        return TensorType(tuple(tensor.shape), DType.I4) if slot in self.i4 else TensorType.of(tensor)

    def cast(self, dtype: torch.dtype) -> Sample:
        """The same with floating-point operands of another type."""
        operands = tuple(
            item.to(dtype) if item is not None and item.is_floating_point() else item for item in self.operands
        )
        return Sample(self.op, operands, self.attributes, self.i4, self.label)


_generator = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=_generator, dtype=torch.float64) + 0.25


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator, dtype=torch.float64)


def randint(low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(low, high, shape, generator=_generator).to(dtype)


def bits(*shape: int) -> Tensor:
    return randint(0, 2, shape).bool()


def _elementwise() -> Iterator[Sample]:
    between = rand(BATCH, LENGTH) / 2  # inside the domain of every function but acosh
    for name in elementwise._UNARY:
        if name == "bitwise_not":
            yield Sample(name, (randint(-9, 9, (BATCH, LENGTH)),))
            continue
        yield Sample(name, (between + 1 if name == "acosh" else between,))
        if name in elementwise._INTEGER_UNARY:
            yield Sample(name, (randint(-9, 9, (BATCH, LENGTH), torch.int32),), label="integer")
    for name in elementwise._UNARY_TO_BOOL:
        yield Sample(name, (randn(BATCH, LENGTH),))
    integers = {"bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift"}
    for name in [*elementwise._BINARY, *elementwise._BINARY_TO_BOOL]:
        if name not in integers:
            yield Sample(name, (rand(BATCH, 1, LENGTH), rand(3, LENGTH)))
        if name not in elementwise._FLOAT_BINARY:
            operands = randint(-9, 9, (BATCH, 1, LENGTH)), randint(1, 5, (3, 1))
            yield Sample(name, operands, label="integer")
    for dtype in DType:
        yield Sample("cast", (randn(BATCH, 3) * 4,), {"dtype": dtype}, label=dtype.value)
    yield Sample("clamp", (randn(BATCH, 3),), {"minimum": -0.5, "maximum": 0.5})
    yield Sample("clamp", (randint(0, 99, (BATCH, 3), torch.uint8),), {"maximum": 6}, label="integer")
    yield Sample("where", (bits(BATCH, 1), randn(3), randn(BATCH, 3)))
    yield Sample("gelu", (randn(BATCH, 3),))
    yield Sample("gelu", (randn(BATCH, 3),), {"approximate": "tanh"}, label="tanh")
    for name in ("leaky_relu", "elu", "softplus"):
        yield Sample(name, (randn(BATCH, 3),))


def conv(spatial: int, **changes: Any) -> dict[str, Any]:
    """Attributes of a convolution."""
    plain = {"stride": (1,) * spatial, "padding": ((0, 0),) * spatial, "dilation": (1,) * spatial}
    return plain | changes


def transposed(spatial: int, **changes: Any) -> dict[str, Any]:
    """Attributes of a transposed convolution."""
    plain = {
        key: (1 if key in ("stride", "dilation") else 0,) * spatial
        for key in ("stride", "padding", "output_padding", "dilation")
    }
    return plain | changes


def _contraction() -> Iterator[Sample]:
    yield Sample("linear", (randn(BATCH, LENGTH, 4), randn(5, 4), randn(5)))
    yield Sample("linear", (randn(4), randn(5, 4), None), label="vector")
    yield Sample("matmul", (randn(BATCH, 1, LENGTH, 4), randn(3, 4, 5)))
    yield Sample("einsum", (randn(BATCH, 2, 4), randn(BATCH, 4, 3)), {"equation": "bij,bjk->bki"})
    yield Sample("einsum", (randn(4, 4, BATCH),), {"equation": "iib->b"}, label="trace")
    last = {"layout": "channels_last"}
    yield Sample("conv", (randn(BATCH, 4, LENGTH), randn(6, 4, 3), randn(6)), conv(1, padding=((2, 0),)), label="1d")
    yield Sample("conv", (randn(BATCH, 4, LENGTH, 9), randn(6, 2, 3, 2), randn(6)), conv(2, groups=2, stride=(2, 1)))
    yield Sample("conv", (randn(BATCH, 6, 9, 4), randn(6, 2, 3, 2), None), conv(2, groups=2, **last), label="last")
    yield Sample("conv", (randn(BATCH, 3, 5, 5), randn(6, 1, 3, 3), randn(6)), conv(2, groups=3), label="depthwise")
    yield Sample(
        "conv",
        (randn(BATCH, 2, 4, 5, 6), randn(3, 2, 2, 2, 2), None),
        conv(3, dilation=(2, 1, 1)),
        label="3d",
    )
    name = "conv_transpose"
    yield Sample(name, (randn(BATCH, 4, LENGTH), randn(4, 3, 3), randn(3)), transposed(1, stride=(2,)), label="1d")
    shuffled = transposed(2, groups=2, stride=(2, 3), padding=(1, 0), output_padding=(1, 2))
    yield Sample(name, (randn(BATCH, 4, 5, 6), randn(4, 3, 3, 2), randn(6)), shuffled)
    yield Sample(name, (randn(BATCH, 5, 6, 4), randn(4, 3, 3, 2), None), transposed(2, **last), label="last")
    yield Sample(name, (randn(BATCH, 3, 5), randn(3, 2, 2), randn(6)), transposed(1, groups=3), label="depthwise")
    yield Sample(name, (randn(BATCH, 2, 3, 3, 3), randn(2, 3, 2, 2, 2), None), transposed(3), label="3d")
    q, k, v = randn(BATCH, 4, LENGTH, 8), randn(BATCH, 4, 5, 8), randn(BATCH, 4, 5, 6)
    yield Sample("attention", (q, k, v))
    yield Sample("attention", (q, k, v, randn(LENGTH, 5)), {"causal": True, "scale": 0.5}, label="float-mask")
    yield Sample("attention", (q, k[:, :2], v[:, :2], bits(BATCH, 1, 1, 5)), label="grouped")
    yield Sample("attention", (q, k[:, :1], v[:, :1]), label="shared-key")
    yield Sample("attention", (q[:, 0], k[:, 0], v[:, 0]), label="rank-3")
    yield Sample("attention", (q[0, 0], k[0, 0], v[0, 0]), label="rank-2")


def _shape() -> Iterator[Sample]:
    yield Sample("reshape", (randn(BATCH, LENGTH, 12),), {"shape": (BATCH, LENGTH, 3, 4)}, label="split")
    yield Sample("reshape", (randn(BATCH, 3, 4, LENGTH),), {"shape": (BATCH, 12, LENGTH)}, label="merge")
    yield Sample("reshape", (randn(BATCH, 1, 6),), {"shape": (1, BATCH, 3, 2, 1)}, label="ones")
    yield Sample("reshape", (randn(4, 6),), {"shape": (6, 4)}, label="mixed")
    yield Sample("transpose", (randn(BATCH, 3, LENGTH),), {"permutation": (2, 0, 1)})
    yield Sample("broadcast_to", (randn(1, LENGTH),), {"shape": (BATCH, 3, LENGTH)})
    bounds = {"starts": (0, 2, 1), "stops": (BATCH, 5, 8), "steps": (1, 1, 3)}
    yield Sample("slice", (randn(BATCH, 6, 9),), bounds)
    yield Sample("concat", (randn(BATCH, 2), randn(BATCH, 3), randn(BATCH, 1)), {"axis": 1})
    yield Sample("pad", (randn(BATCH, 3),), {"padding": ((0, 0), (1, 2)), "value": 1.5})
    yield Sample("pad", (bits(BATCH, 3),), {"padding": ((0, 0), (-1, 2))}, label="bool")
    for mode in ("reflect", "replicate", "circular"):
        yield Sample("pad", (randn(BATCH, 4, 5),), {"padding": ((0, 0), (0, 0), (2, 3)), "mode": mode}, label=mode)
    yield Sample("flip", (randn(BATCH, 3, 4),), {"dims": (1,)})
    yield Sample("triangle", (randn(BATCH, 4, 5),), {"lower": True, "diagonal": -1})


def _normalization() -> Iterator[Sample]:
    for axis, label in ((1, "first"), (3, "last")):
        x = randn(BATCH, 4, 3, 4)
        yield Sample("batch_norm", (x, randn(4), rand(4), randn(4), randn(4)), {"axis": axis}, label=label)
    yield Sample("batch_norm", (randn(BATCH, 4), randn(4), rand(4)), label="plain")
    yield Sample("layer_norm", (randn(BATCH, LENGTH, 5), randn(5), randn(5)))
    yield Sample("layer_norm", (randn(BATCH, 4, 5), randn(4, 5)), {"rank": 2}, label="rank-2")
    yield Sample("rms_norm", (randn(BATCH, LENGTH, 5), randn(5)))
    yield Sample("group_norm", (randn(BATCH, 6, LENGTH), randn(6), randn(6)), {"groups": 3})
    last = {"groups": 2, "layout": "channels_last"}
    yield Sample("group_norm", (randn(BATCH, 3, 3, 6), randn(6), randn(6)), last, label="last")
    yield Sample("group_norm", (randn(BATCH, 6, 3, 3),), {"groups": 6}, label="instance")
    for name in ("softmax", "log_softmax"):
        yield Sample(name, (randn(BATCH, LENGTH, 5),), {"axis": 1})


def _reduction() -> Iterator[Sample]:
    for name in ("sum", "mean", "prod", "amax", "amin", "var"):
        yield Sample(name, (randn(BATCH, LENGTH, 3),), {"dims": (1,)})
        yield Sample(name, (randn(BATCH, 4, 3),), {"dims": (2, 1), "keepdims": True}, label="keep")
    for name in ("any", "all"):
        yield Sample(name, (randint(0, 2, (BATCH, 3, 2), torch.uint8),), {"dims": (1,)})
        yield Sample(name, (randn(BATCH, 3),), {"dims": ()}, label="none")
    yield Sample("sum", (randint(0, 99, (BATCH, 3), torch.int8),), {"dims": (1,)}, label="integer")
    for name in ("argmax", "argmin"):
        yield Sample(name, (randn(BATCH, LENGTH, 3),), {"dim": 1})
    for name in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"):
        yield Sample(name, (randn(BATCH, LENGTH, 3),), {"dim": 1})
    for name in ("cumsum", "cumprod"):
        yield Sample(name, (randint(0, 9, (BATCH, 4), torch.int32),), {"dim": 1}, label="integer")


def _pooling() -> Iterator[Sample]:
    x, last = randn(BATCH, 3, LENGTH, 10), {"layout": "channels_last"}
    window = {"kernel": (3, 2), "stride": (2, 2), "padding": ((1, 1), (0, 1))}
    yield Sample("max_pool", (x,), window | {"dilation": (1, 2)})
    yield Sample("max_pool", (x,), window | {"dilation": (1, 1), "ceil": True}, label="ceil")
    yield Sample("max_pool", (x,), window | {"dilation": (1, 1)} | last, label="last")
    yield Sample(
        "max_pool",
        (randint(-9, 9, (BATCH, 3, 10, 10), torch.int8),),
        window | {"dilation": (1, 1)},
        label="i8",
    )
    yield Sample("max_pool_with_indices", (x,), window | {"dilation": (1, 2)})
    yield Sample("adaptive_max_pool_with_indices", (x,), {"size": (4, 3)} | last)
    yield Sample("avg_pool", (x,), window)
    yield Sample("avg_pool", (x,), window | {"ceil": True, "count_padding": False}, label="ceil")
    yield Sample("avg_pool", (x,), window | {"divisor": 5} | last, label="divisor")
    for name in ("adaptive_avg_pool", "adaptive_max_pool"):
        yield Sample(name, (x,), {"size": (4, 3)})
        yield Sample(name, (x,), {"size": (4, 3)} | last, label="last")


def _recurrent() -> Iterator[Sample]:
    x, hidden = randn(LENGTH, BATCH, 3), randn(BATCH, 4)
    for name, gates in (("gru", 3), ("rnn", 1)):
        weights, biases = (randn(gates * 4, 3), randn(gates * 4, 4)), (randn(gates * 4), randn(gates * 4))
        yield Sample(name, (x, hidden, *weights, *biases))
        yield Sample(name, (x, hidden, *weights), label="no_bias")
    yield Sample("rnn", (x, hidden, randn(4, 3), randn(4, 4)), {"activation": "relu"}, label="relu")
    weights, biases = (randn(16, 3), randn(16, 4)), (randn(16), randn(16))
    yield Sample("lstm", (x, hidden, randn(BATCH, 4), *weights, *biases))
    projected = (randn(BATCH, 2), randn(BATCH, 4), randn(16, 3), randn(16, 2), None, None, randn(2, 4))
    yield Sample("lstm", (x, *projected), label="projection")
    for name, gates in (("gru", 3), ("rnn", 1), ("lstm", 4)):
        states = (hidden, randn(BATCH, 4)) if name == "lstm" else (hidden,)
        gates_x, recurrent = randn(LENGTH, BATCH, gates * 4), randn(gates * 4, 4)
        yield Sample(name, (gates_x, *states, None, recurrent, None, randn(gates * 4)), label="gates")
    yield from _recurrent_integer()


def _recurrent_integer() -> Iterator[Sample]:
    for name, gates, states in (("lstm_integer", 4, 2), ("gru_integer", 3, 1)):
        reals = (randn(LENGTH, BATCH, gates * 5).float(), *(randn(BATCH, 5).float() for _ in range(states)))
        weight = randint(-128, 127, (gates * 5, 5), torch.int8)
        multiplier, scale = rand(gates * 5).float() / 1e4, torch.tensor(1 / 127)
        yield Sample(name, (*reals, weight, multiplier, scale))
    yield Sample(name, (*reals, weight, multiplier, scale, randn(gates * 5).float()), label="bias")


def _resize() -> Iterator[Sample]:
    x, last = randn(BATCH, 3, 5, 6), {"layout": "channels_last"}
    for mode, systems in MODES.items():
        for coordinates in systems:
            way = {"mode": mode, "coordinates": coordinates, "size": (8, 4)}
            yield Sample("resize", (x,), way, label=f"{mode}_{coordinates}")
    scaled = {"mode": "linear", "coordinates": "half_pixel", "size": (8, 9), "scales": (1.7, 1.6)}
    yield Sample("resize", (x,), scaled | last, label="scales")
    grid = rand(BATCH, 4, LENGTH, 2) * 2 - 1.5
    yield Sample("grid_sample", (x, grid))
    yield Sample("grid_sample", (x, grid), {"mode": "cubic", "border": "border"}, label="cubic")
    corners = {"mode": "nearest", "border": "reflection", "align_corners": True}
    yield Sample("grid_sample", (x, grid), corners, label="nearest")
    yield Sample("grid_sample", (randn(BATCH, 2, 3, 4, 5), rand(BATCH, 2, 3, 4, 3)), label="volume")


def _quantized() -> Iterator[Sample]:
    codes, weights = (
        randint(0, 255, (BATCH, 4, 5, 6), torch.uint8),
        randint(-128, 127, (6, 2, 3, 3), torch.int8),
    )
    scale, zero, bias = (
        rand().float(),
        torch.tensor(3, dtype=torch.int32),
        randint(-999, 999, (6,), torch.int32),
    )
    for dtype in (DType.I8, DType.U8, DType.I4):
        yield Sample("quantize", (randn(BATCH, 3).float(), scale, zero), {"dtype": dtype}, label=dtype.value)
    per_row = rand(3).float(), torch.zeros(3, dtype=torch.int32)
    yield Sample("quantize", (randn(BATCH, 3).float(), *per_row), {"dtype": DType.I8, "axis": 1}, label="axis")
    yield Sample("dequantize", (codes, scale, zero))
    yield Sample("dequantize", (randint(-9, 9, (BATCH, 3), torch.int32), per_row[0]), {"axis": 1}, label="axis")
    accumulator = randint(-(2**31), 2**31, (BATCH, 3), torch.int32)
    yield Sample("requantize", (accumulator, scale, zero), {"dtype": DType.U8})
    yield Sample("requantize", (accumulator, *per_row), {"dtype": DType.I8, "axis": 1}, label="axis")
    padded = conv(2, groups=2, padding=((1, 1), (1, 0)), x_zero_point=7)
    yield Sample("conv_integer", (codes, weights, bias), padded)
    rows = randint(-8, 8, (5, 6), torch.int8)
    yield Sample("linear_integer", (codes, rows, None), {"x_zero_point": 128}, i4=(1,), label="i4")
    yield Sample("linear_integer", (codes, rows, bias[:5]))
    yield Sample("matmul_integer", (codes, randint(-9, 9, (4, 6, 2), torch.int8)), {"y_zero_point": -3})
    tokens = randn(BATCH, LENGTH, 3).float(), rand(BATCH, LENGTH, 1).float(), zero
    yield Sample("quantize", tokens, {"dtype": DType.I8}, label="token")
    yield Sample("dequantize", (randint(-9, 9, (BATCH, LENGTH, 3), torch.int32), tokens[1]), label="token")
    for dims, keepdims in (((1,), False), ((2, 3), True)):
        yield Sample("sum_integer", (codes,), {"dims": dims, "keepdims": keepdims, "x_zero_point": 9}, label=f"{dims}")
    window = {"kernel": (3, 2), "stride": (2, 1), "padding": ((1, 0), (0, 1)), "x_zero_point": 9}
    yield Sample("sum_pool_integer", (codes,), window)
    yield Sample("sum_pool_integer", (codes,), window | {"layout": "channels_last"}, label="last")


def _weights() -> Iterator[Sample]:
    yield Sample("masked", (randn(BATCH, 3), rand(BATCH, 3) > 0.5))
    yield Sample("lookup", (randn(256), randint(0, 255, (BATCH, 3), torch.uint8)))
    codes, scale = randint(-8, 8, (BATCH, 6), torch.int8), rand(BATCH, 2).float()
    yield Sample("dequantize_blocks", (codes, scale, None), {"group": 4})
    yield Sample("dequantize_blocks", (codes, scale, None), {"group": 4}, i4=(0,), label="i4")
    yield Sample(
        "fake_quantize",
        (randn(BATCH, 3).float(), torch.tensor(0.1), torch.tensor(3, dtype=torch.int32)),
        {"dtype": DType.U8},
    )


def _source() -> Iterator[Sample]:
    yield Sample("full", (), {"shape": (BATCH, 3), "value": 2.5, "dtype": DType.F32})
    yield Sample("full", (), {"shape": (), "value": True, "dtype": DType.BOOL}, label="bool")
    yield Sample("iota", (), {"length": LENGTH, "start": 3, "step": 2, "dtype": DType.I64})
    yield Sample("iota", (), {"length": LENGTH, "start": 0.5, "step": 0.25, "dtype": DType.F32}, label="float")
    yield Sample("constant", (), {"tensor": randn(3, 2), "key": "w"})
    yield Sample("constant", (), {"tensor": torch.tensor([3, -8], dtype=torch.int8), "dtype": DType.I4}, label="i4")


FAMILIES = (
    _elementwise, _contraction, _shape, _normalization, _reduction, _pooling, _recurrent, _resize,
    _quantized, _weights, _source,
)  # fmt: skip
SAMPLES: tuple[Sample, ...] = tuple(sample for family in FAMILIES for sample in family())
