"""Graphs with every kind of dependency between channels, and the law that structured pruning keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from tests.passes.equality import build, inputs_of, positive, relative_error, weight
from whet.ir import Builder, Graph, Interpreter, Value, verify
from whet.ir.coupling import Coupling, Strand, dimensions_of
from whet.ir.views import tie_graph
from whet.passes.pruning.resize import resize
from whet.passes.pruning.units import Group, find_groups

PADDED = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
POINT = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}


def constant(b: Builder, *shape: int, key: str = "", seed: int = 0) -> Value:
    return b.constant(weight(*shape, seed=seed + sum(shape)) / max(shape[-1], 1) ** 0.5, key)


def conv(b: Builder, x: Value, out: int, kernel: int = 3, groups: int = 1, key: str = "", bias: bool = True) -> Value:
    """A convolution that keeps the size."""
    options = PADDED if kernel == 3 else POINT
    w = constant(b, out, int(x.type.shape[1]) // groups, kernel, kernel, key=f"{key}.weight" if key else "")
    result: Value = b.conv(x, w, constant(b, out, seed=1) if bias else None, **options, groups=groups)
    return result


def linear(b: Builder, x: Value, out: int, key: str = "") -> Value:
    w = constant(b, out, int(x.type.shape[-1]), key=f"{key}.weight" if key else "")
    result: Value = b.linear(x, w, constant(b, out, seed=1))
    return result


def batch_norm(b: Builder, x: Value) -> Value:
    channels = int(x.type.shape[1])
    parts = (weight(channels), positive(channels), positive(channels, seed=1), weight(channels, seed=2))
    result: Value = b.batch_norm(x, *map(b.constant, parts))
    return result


def head(b: Builder, x: Value) -> Value:
    """Mean over the positions, and a linear layer."""
    return linear(b, b.mean(x, dims=(2, 3)), 3)


def residual(b: Builder, x: Value) -> Value:
    first = b.relu(batch_norm(b, conv(b, x, 8, bias=False)))
    y = b.relu(batch_norm(b, conv(b, first, 12)))
    return head(b, b.relu(b.add(conv(b, y, 8), first)))


def flattened(b: Builder, x: Value) -> Value:
    y = b.adaptive_avg_pool(b.relu(conv(b, x, 6)), size=(2, 2))
    y = b.relu(linear(b, b.reshape(y, shape=(2, 24)), 10))
    return linear(b, y, 3)


def split(b: Builder, x: Value) -> Value:
    y = conv(b, x, 9)
    parts = [b.slice(y, starts=(0, at, 0, 0), stops=(2, at + 3, 4, 4), steps=(1, 1, 1, 1)) for at in (0, 3, 6)]
    return head(b, b.concat(parts[2], b.relu(conv(b, parts[0], 4)), parts[1], x, axis=1))


def shuffled(b: Builder, x: Value) -> Value:
    """Channel shuffle (Zhang et al., ShuffleNet, CVPR 2018)."""
    y = b.concat(conv(b, x, 6), b.tanh(conv(b, x, 6)), axis=1)
    y = b.transpose(b.reshape(y, shape=(2, 2, 6, 4, 4)), permutation=(0, 2, 1, 3, 4))
    return head(b, conv(b, b.reshape(y, shape=(2, 12, 4, 4)), 5))


def depthwise(b: Builder, x: Value) -> Value:
    y = conv(b, conv(b, x, 6, 1), 6, groups=6)
    return head(b, conv(b, conv(b, y, 12, groups=6), 4, 1))


def grouped(b: Builder, x: Value) -> Value:
    return head(b, conv(b, b.relu(conv(b, conv(b, x, 8, 1), 16, groups=4)), 4, 1))


def wide_groups(b: Builder, x: Value) -> Value:
    return head(b, conv(b, b.relu(conv(b, conv(b, x, 12, 1), 12, groups=2)), 4, 1))


def gated(b: Builder, x: Value) -> Value:
    """Squeeze and excitation."""
    y = conv(b, x, 8)
    squeezed = b.mean(y, dims=(2, 3), keepdims=True)
    gate = b.sigmoid(conv(b, b.relu(conv(b, squeezed, 4, 1)), 8, 1))
    return head(b, b.mul(y, gate))


def widened(b: Builder, x: Value) -> Value:
    """A shortcut that is padded with zero channels."""
    y = conv(b, x, 4)
    padded = b.pad(y, padding=((0, 0), (2, 2), (0, 0), (0, 0)))
    return head(b, b.add(padded, conv(b, y, 8)))


def transposed(b: Builder, x: Value) -> Value:
    y = conv(b, x, 6)
    options = {"stride": (2, 2), "padding": (0, 0), "output_padding": (0, 0), "dilation": (1, 1), "groups": 2}
    y = b.conv_transpose(y, constant(b, 6, 4, 2, 2), constant(b, 8), **options)
    return head(b, y)


def broadcast(b: Builder, x: Value) -> Value:
    """A learned token, broadcast and put before the others."""
    tokens = b.transpose(b.reshape(conv(b, x, 8), shape=(2, 8, 16)), permutation=(0, 2, 1))
    first = b.broadcast_to(constant(b, 1, 1, 8), shape=(2, 1, 8))
    shift = b.full(shape=(2, 17, 8), value=0.0, dtype=tokens.type.dtype)
    y = b.add(b.concat(first, tokens, axis=1), shift)
    y = b.slice(linear(b, y, 6), starts=(0, 0, 0), stops=(2, 1, 6), steps=(1, 1, 1))
    return linear(b, b.reshape(y, shape=(2, 6)), 3)


def recurrent(b: Builder, x: Value) -> Value:
    """Two layers that begin with the same zeros."""
    y = b.transpose(b.reshape(x, shape=(2, 3, 16)), permutation=(1, 0, 2))
    zeros = b.full(shape=(2, 6), value=0.0, dtype=x.type.dtype)
    for _ in range(2):
        weights = constant(b, 24, int(y.type.shape[-1])), constant(b, 24, 6), constant(b, 24)
        y, _, _ = b.lstm(y, zeros, zeros, *weights)
    return linear(b, b.mean(y, dims=(0,)), 3)


def attention(groups: int, joined: bool = False) -> Callable[[Builder, Value], Value]:
    """Four query heads of 4 over `groups` key heads; `joined`: one projection for all three, cut apart."""

    def body(b: Builder, x: Value) -> Value:
        tokens = b.transpose(b.reshape(conv(b, x, 8, 1, key="embed"), shape=(2, 8, 16)), permutation=(0, 2, 1))
        if joined:
            y = b.reshape(linear(b, tokens, 48, key="qkv"), shape=(2, 16, 3, 4, 4))
            y = b.transpose(y, permutation=(2, 0, 3, 1, 4))
            cuts = [b.slice(y, starts=(at, 0, 0, 0, 0), stops=(at + 1, 2, 4, 16, 4), steps=(1,) * 5) for at in range(3)]
            parts = [b.reshape(cut, shape=(2, 4, 16, 4)) for cut in cuts]
        else:
            projections = [(name, linear(b, tokens, count * 4, key=name), count) for name, count in _heads(groups)]
            parts = [
                b.transpose(b.reshape(y, shape=(2, 16, count, 4)), permutation=(0, 2, 1, 3))
                for _, y, count in projections
            ]
        y = b.reshape(b.transpose(b.attention(*parts), permutation=(0, 2, 1, 3)), shape=(2, 16, 16))
        y = b.add(linear(b, y, 8, key="out"), tokens)
        return linear(b, b.mean(b.add(linear(b, b.gelu(linear(b, y, 20)), 8), y), dims=(1,)), 3)

    return body


def _heads(groups: int) -> Sequence[tuple[str, int]]:
    return ("query", 4), ("key", groups), ("value", groups)


NETWORKS: dict[str, Callable[[Builder, Value], Value]] = {
    "residual": residual,
    "flattened": flattened,
    "split": split,
    "shuffled": shuffled,
    "depthwise": depthwise,
    "grouped": grouped,
    "wide_groups": wide_groups,
    "gated": gated,
    "widened": widened,
    "transposed": transposed,
    "broadcast": broadcast,
    "recurrent": recurrent,
    "attention": attention(4),
    "joined_attention": attention(4, joined=True),
    "grouped_attention": attention(2),
    "shared_attention": attention(1),
}


def network(name: str) -> Graph:
    return build(NETWORKS[name], (2, 3, 4, 4))


def groups_of(graph: Graph) -> tuple[Coupling, list[Group]]:
    """Everything that can be removed, whatever it is part of."""
    coupling = Coupling(tie_graph(graph))
    wanted = {
        strand
        for value in graph.constants
        for dim in range(value.type.rank)
        if (strand := coupling.strand((value.name, dim))).pinned is None and value.type.rank > 1
    }
    return coupling, find_groups(graph, coupling, wanted, ())


def silenced(graph: Graph, removed: dict[tuple[str, int], frozenset[int]]) -> dict[str, torch.Tensor]:
    """Constants with zeros where something is removed: what is removed then computes nothing and is read by nothing."""
    tensors = {}
    for value in graph.constants:
        assert value.constant is not None
        tensor = value.constant.clone()
        for dim in range(tensor.dim()):
            indices = sorted(removed.get((value.name, dim), ()))
            tensor.index_fill_(dim, torch.tensor(indices, dtype=torch.int64), 0.0)
        tensors[value.name] = tensor
    return tensors


def assert_removal_is_exact(graph: Graph, coupling: Coupling, masks: dict[Strand, np.ndarray]) -> Graph:
    """Removing what is zero changes no result, and leaves a valid graph."""
    removed = dimensions_of(coupling.close(masks))
    small = resize(graph, removed)
    verify(small)
    given = inputs_of(graph)
    expected = Interpreter(graph, silenced(graph, removed))(*given)
    for out, ref in zip(Interpreter(small)(*given), expected, strict=True):
        assert relative_error(out, ref) < 1e-5
    return small
