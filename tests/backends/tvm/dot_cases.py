"""Contractions of 8-bit integers over their whole range, and of bf16 numbers whose sums are exact, with references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tests.ir.samples import Sample
from whet.ir.target import CATALOGUE

_VNNI = CATALOGUE["avx512-vnni"]
_A76 = CATALOGUE["cortex-a76"]

ALDER_LAKE = replace(
    CATALOGUE["avx2"], name="alderlake", cpu="alderlake", features=(*CATALOGUE["avx2"].features, "avxvnni")
)
VNNI_256 = replace(_VNNI, name="vnni-256", vector_bits=256)
COOPER_LAKE = replace(_VNNI, name="cooperlake", features=(*_VNNI.features, "avx512bf16"))
COOPER_LAKE_256 = replace(COOPER_LAKE, name="cooperlake-256", vector_bits=256)
NEOVERSE_N2 = replace(
    _A76,
    name="neoverse-n2",
    cpu="neoverse-n2",
    features=("bf16", "crc", "dotprod", "fp-armv8", "fullfp16", "i8mm", "lse", "neon", "rcpc", "rdm"),
)
PLAIN = replace(CATALOGUE["avx2"], name="plain", features=("avx",))
SAPPHIRE_RAPIDS = CATALOGUE["sapphire-rapids"]
INTEGER_TARGETS = {
    target.name: target
    for target in (SAPPHIRE_RAPIDS, _VNNI, VNNI_256, ALDER_LAKE, CATALOGUE["avx512"], CATALOGUE["avx2"], PLAIN)
}
BFLOAT_TARGETS = {target.name: target for target in (SAPPHIRE_RAPIDS, COOPER_LAKE, COOPER_LAKE_256)}

DTYPES = {"u8": torch.uint8, "i8": torch.int8}
_generator = torch.Generator().manual_seed(3)


def codes(dtype: torch.dtype, *shape: int) -> Tensor:
    """Integers over the whole range; those of the first index are all the largest or all the smallest.

    Of these one sum takes the largest products that there are (255 times -128).
    """
    info = torch.iinfo(dtype)
    values = torch.randint(info.min, info.max + 1, shape, generator=_generator)
    values[0] = info.max if dtype is torch.uint8 else info.min
    return values.to(dtype)


def small(*shape: int) -> Tensor:
    """Whole numbers in bf16, whose products and sums are exact in f32 however they are ordered."""
    return torch.randint(-16, 17, shape, generator=_generator).to(torch.bfloat16)


def _window(padding: int = 0, stride: int = 1, groups: int = 1, rank: int = 2, dilation: int = 1) -> dict[str, object]:
    return {
        "padding": ((padding, padding),) * rank,
        "stride": (stride,) * rank,
        "dilation": (dilation,) * rank,
        "groups": groups,
        "layout": "channels_last",
    }


# name: (input without batch, channels last; weight; window)
CONVS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]] = {
    "3x3": ((9, 11, 32), (64, 32, 3, 3), _window(1)),
    "strided stem": ((15, 14, 3), (24, 3, 3, 3), _window(1, 2)),
    "odd channels": ((7, 5, 13), (19, 13, 3, 3), _window(1)),
    "pointwise": ((6, 7, 22), (40, 22, 1, 1), _window()),
    "one column": ((12, 1, 16), (32, 16, 3, 1), _window(1)),
    "grouped": ((7, 6, 32), (64, 8, 3, 3), _window(1, groups=4)),
    "groups of 20": ((5, 5, 16), (40, 8, 3, 3), _window(1, groups=2)),
    "odd groups": ((5, 5, 15), (50, 3, 3, 3), _window(1, groups=5)),
    "32 groups": ((5, 5, 128), (128, 4, 3, 3), _window(1, groups=32)),
    "depthwise": ((9, 9, 24), (24, 1, 3, 3), _window(1, 2, groups=24)),
    "depthwise, whole vectors": ((9, 8, 64), (64, 1, 3, 3), _window(1, groups=64)),
    "1d": ((21, 12), (20, 12, 5), _window(2, rank=1)),
    # what a matrix unit loads in phases, in several registers, or with the taps of a line side by side
    "dilated": ((13, 12, 32), (32, 32, 3, 3), _window(2, dilation=2)),
    "strided": ((17, 16, 48), (80, 48, 3, 3), _window(1, 2)),
    "strided pointwise": ((12, 9, 80), (32, 80, 1, 1), _window(0, 2)),
    "wide stem": ((30, 31, 3), (32, 3, 7, 7), _window(3, 2)),
    "small and deep": ((7, 7, 192), (64, 192, 3, 3), _window(1)),
    "many pixels": ((16, 16, 64), (48, 64, 1, 1), _window()),
    "strided 1d": ((64, 24), (40, 24, 8), _window(3, 4, rank=1)),
    "one column, long": ((40, 1, 24), (32, 24, 8, 1), _window(3)),
    "3d": ((5, 6, 7, 16), (32, 16, 3, 3, 3), _window(1, rank=3)),
}
# (activations, weights)
LINEARS = (
    ((1, 64), (40, 64)),
    ((7, 37), (19, 37)),
    ((2, 9, 64), (96, 64)),
    ((50,), (33, 50)),
    ((3, 130), (5, 130)),
    ((5, 8, 72), (24, 72)),
)
# (left, right)
MATMULS = (
    ((2, 3, 17, 32), (2, 3, 32, 48)),
    ((4, 12, 13), (4, 13, 21)),
    ((1, 2, 1, 40), (1, 2, 40, 16)),
    ((2, 5, 16), (16, 24)),
    ((2, 34, 70), (2, 70, 33)),
)


_BOTH = ("3x3", "odd channels", "depthwise, whole vectors")


def integer_samples() -> list[Sample]:
    """Every shape above, signed or unsigned (some both), with zero points at the ends of the range and inside."""
    samples = []
    for number, (name, (shape, weight, window)) in enumerate(CONVS.items()):
        kinds = (("u8", (7, 255)), ("i8", (-128, 5)))
        for kind, zero_points in kinds if name in _BOTH else kinds[number % 2 :][:1]:
            x, zero_point = codes(DTYPES[kind], 2, *shape), zero_points[number // 2 % 2]
            bias = torch.randint(-9999, 9999, weight[:1], generator=_generator).to(torch.int32)
            samples.append(
                Sample("conv_integer", (x, codes(torch.int8, *weight), bias), {**window, "x_zero_point": zero_point})
            )
    for number, (shape, weight) in enumerate(LINEARS):
        kind, zero_point = (("u8", 131), ("i8", -3))[number % 2]
        operands = codes(DTYPES[kind], *shape), codes(torch.int8, *weight), None
        samples.append(Sample("linear_integer", operands, {"x_zero_point": zero_point}))
    pairs = (("u8", "u8", 255, 128), ("u8", "i8", 0, 0), ("i8", "i8", -128, 3), ("i8", "u8", 0, 77), ("i8", "i8", 0, 0))
    for number, (left, right) in enumerate(MATMULS):
        for one, other, x_zero_point, y_zero_point in pairs if number == 0 else pairs[number:][:2]:
            matrices = codes(DTYPES[one], *left), codes(DTYPES[other], *right)
            samples.append(
                Sample("matmul_integer", matrices, {"x_zero_point": x_zero_point, "y_zero_point": y_zero_point})
            )
    return samples


def bfloat_samples() -> list[Sample]:
    """The same shapes in bf16."""
    samples = [
        Sample("conv", (small(2, *shape), small(*weight), small(weight[0])), window)
        for shape, weight, window in CONVS.values()
    ]
    samples += [Sample("linear", (small(*shape), small(*weight), None)) for shape, weight in LINEARS]
    return samples + [Sample("matmul", (small(*left), small(*right))) for left, right in MATMULS]


def constants(samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    """Slots of weights and biases, for `one_op.graph_of`."""
    return [() if sample.op.startswith("matmul") else (1, 2) for sample in samples]


def exact(sample: Sample) -> Tensor:
    """The sums in int64, in no way that a kernel goes: windows are cut out and multiplied as matrices."""
    left, right = (item for item in sample.operands[:2] if item is not None)
    x = left.long() - int(sample.attributes.get("x_zero_point", 0))
    y = right.long() - int(sample.attributes.get("y_zero_point", 0))
    bias = sample.operands[2] if len(sample.operands) > 2 else None
    if sample.op.startswith("conv"):
        total = _convolved(x, y, **{key: sample.attributes[key] for key in ("padding", "stride", "dilation", "groups")})
    else:
        total = x @ (y if sample.op.startswith("matmul") else y.T)
    return total if bias is None else total + bias.long()


def _convolved(
    x: Tensor,
    weight: Tensor,
    padding: tuple[tuple[int, int], ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """`x[N, *spatial, C]`, centered: zeros pad it."""
    amounts = [amount for pair in reversed(padding) for amount in pair]
    windows = torch.nn.functional.pad(x, (0, 0, *amounts))
    for axis, (size, step, between) in enumerate(zip(weight.shape[2:], stride, dilation, strict=True)):
        windows = windows.unfold(1 + axis, (size - 1) * between + 1, step)[..., ::between]
    # [N, *outputs, C, *kernel] -> [N, *outputs, group, C / groups * kernel]
    lead = windows.shape[: 1 + len(stride)]
    rows = windows.reshape(*lead, groups, -1)
    filters = weight.reshape(groups, weight.shape[0] // groups, -1)
    return torch.einsum("...gk,gok->...go", rows, filters).reshape(*lead, weight.shape[0])
