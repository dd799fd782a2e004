"""Small convolutional networks, as Hypothesis draws them and as people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from tests.passes.equality import positive, weight
from whet.ir import Builder, DType, Graph, TensorType, Value

Draw = Callable[[st.SearchStrategy[Any]], Any]


@st.composite
def convolutional_graphs(draw: Draw, largest: int = 8) -> Graph:
    """Graphs over [2, C, H, W] values that mix everything that knows about layouts with what does not."""
    graph = Graph()
    builder = Builder(graph)
    size = draw(st.sampled_from(((3, 4), (4, 4), (1, 1))))
    values = [builder.input("x", TensorType((2, 4, *size), DType.F32))]
    for _ in range(draw(st.integers(1, largest))):
        step = draw(st.sampled_from(sorted(_STEPS)))
        value = draw(st.sampled_from(values))
        result = _STEPS[step](draw, builder, value, draw(st.integers(0, 9)))
        values.append(result)
    graph.outputs = [values[-1], draw(st.sampled_from(values))]
    return graph


def _channels(value: Value) -> int:
    return int(value.type.shape[1])


def _conv(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    channels = _channels(x)
    groups = draw(st.sampled_from((1, channels)))
    shape = (channels if groups > 1 else draw(st.sampled_from((2, 4))), channels // groups, 3, 3)
    bias = b.constant(weight(shape[0], seed=seed)) if draw(st.booleans()) else None
    pads = draw(st.sampled_from((((1, 1), (1, 1)), ((2, 1), (1, 2)))))
    common = {"stride": (1, 1), "padding": pads, "dilation": (1, 1), "groups": groups}
    return b.conv(x, b.constant(weight(*shape, seed=seed), "conv.weight"), bias, **common)


def _batch_norm(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    axis = draw(st.sampled_from((1, 1, 1, 3)))
    size = int(x.type.shape[axis])
    mean, variance = b.constant(weight(size, seed=seed)), b.constant(positive(size, seed=seed))
    scale = b.constant(weight(size, seed=seed + 1)) if draw(st.booleans()) else None
    return b.batch_norm(x, mean, variance, scale, None, axis=axis)


def _pool(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    name = draw(st.sampled_from(("max_pool", "avg_pool")))
    extra = {"dilation": (1, 1)} if name == "max_pool" else {}
    pads = ((1, 1), (1, 1))
    return getattr(b, name)(x, kernel=(3, 3), stride=(1, 1), padding=pads, **extra)


def _scale(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    shape = draw(st.sampled_from(((_channels(x), 1, 1), (1, _channels(x), 1, 1), (), (int(x.type.shape[3]),))))
    name = draw(st.sampled_from(("mul", "add", "sub", "div")))
    return getattr(b, name)(x, b.constant(positive(*shape, seed=seed)))


def _excite(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    return b.mul(x, b.sigmoid(b.mean(x, dims=(2, 3), keepdims=True)))


def _gate(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    pooled = b.reshape(b.adaptive_avg_pool(x, size=(1, 1)), shape=(2, _channels(x)))
    gate = b.linear(pooled, b.constant(weight(_channels(x), _channels(x), seed=seed)), None)
    return b.mul(x, b.reshape(gate, shape=(2, _channels(x), 1, 1)))


def _pad(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    height, width = x.type.static_shape[2:]
    padded = b.pad(x, padding=((0, 0), (0, 0), (1, 0), (0, 2)))
    return b.slice(padded, starts=(0, 0, 1, 0), stops=(2, _channels(x), 1 + height, width), steps=(1, 1, 1, 1))


def _shuffle(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    batch, channels, *spatial = x.type.static_shape
    split = b.reshape(x, shape=(batch, 2, channels // 2, *spatial))
    return b.reshape(b.transpose(split, permutation=(0, 2, 1, 3, 4)), shape=x.type.shape)


def _halves(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    batch, channels, *spatial = x.type.static_shape
    half, ones = channels // 2, (1, 1, 1, 1)
    first = b.slice(x, starts=(0, 0, 0, 0), stops=(batch, half, *spatial), steps=ones)
    second = b.slice(x, starts=(0, half, 0, 0), stops=(batch, channels, *spatial), steps=ones)
    return b.concat(first, second, axis=1) if draw(st.booleans()) else b.concat(second, b.relu(first), axis=1)


def _tokens(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    """Flattened to [N, positions, C] for a linear layer, and back."""
    batch, channels, height, width = x.type.static_shape
    tokens = b.transpose(b.reshape(x, shape=(batch, channels, height * width)), permutation=(0, 2, 1))
    mixed = b.linear(tokens, b.constant(weight(channels, channels, seed=seed)), None)
    return b.reshape(b.transpose(mixed, permutation=(0, 2, 1)), shape=x.type.shape)


def _last_norm(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    """Layer norm over the channels, as ConvNeXt does it."""
    last = b.layer_norm(b.transpose(x, permutation=(0, 2, 3, 1)), None, None, rank=1)
    return b.transpose(last, permutation=(0, 3, 1, 2))


def _spatial_norm(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    return b.layer_norm(x, b.constant(weight(*x.type.static_shape[2:], seed=seed)), None, rank=2)


def _softmax(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    return b.softmax(x, axis=draw(st.integers(0, 3)))


def _activation(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    if draw(st.booleans()):
        return b.clamp(x, minimum=0.0, maximum=draw(st.sampled_from((None, 6.0))))
    return getattr(b, draw(st.sampled_from(("relu", "tanh", "neg"))))(x)


def _residual(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    same = [value for value in b.graph.values() if value.type == x.type]
    return b.add(x, draw(st.sampled_from(same)))


def _flip(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    return b.flip(x, dims=(1, 3))


def _broadcast(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    wide = b.broadcast_to(b.amax(x, dims=(1,), keepdims=True), shape=x.type.shape)
    return b.add(x, wide) if draw(st.booleans()) else wide


def _group_norm(draw: Draw, b: Builder, x: Value, seed: int) -> Any:
    return b.group_norm(x, b.constant(weight(_channels(x), seed=seed)), None, groups=2)


_STEPS: dict[str, Callable[[Draw, Builder, Value, int], Any]] = {
    "conv": _conv,
    "batch_norm": _batch_norm,
    "pool": _pool,
    "scale": _scale,
    "excite": _excite,
    "gate": _gate,
    "pad": _pad,
    "shuffle": _shuffle,
    "halves": _halves,
    "tokens": _tokens,
    "last_norm": _last_norm,
    "spatial_norm": _spatial_norm,
    "softmax": _softmax,
    "activation": _activation,
    "residual": _residual,
    "flip": _flip,
    "broadcast": _broadcast,
    "group_norm": _group_norm,
}


def randomize_statistics(model: nn.Module) -> nn.Module:
    """Batch norms that do something, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()
