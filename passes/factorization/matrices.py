"""Layers whose weight is factored as one matrix: linear and embedding, and convolutions in two ways."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from whet.ir.graph import Operation, Value
from whet.passes.factorization.low_rank import Factor, LowRank, Rank, Unit
from whet.passes.factorization.spectrum import Spectrum
from whet.passes.rewrite import MatchFailure, Rewriter


class MatrixLowRank(LowRank):
    """W [groups, m, n] as two factors u and v of rank r: groups · r · (m + n) parameters."""

    def __init__(self, unit: Unit, root: torch.Tensor | None = None) -> None:
        super().__init__(unit, root)
        self.matrix = self._matrix()

    @abstractmethod
    def _matrix(self) -> torch.Tensor:
        """[groups, m, n] in float64."""

    @cached_property
    def spectrum(self) -> Spectrum:
        return Spectrum(self.matrix, self.root)

    @property
    def chain(self) -> Sequence[Rank]:
        return [(rank,) for rank in range(1, min(self.matrix.shape[1:]) + 1)]

    def limited(self, rank: int) -> Rank:
        return (min(rank, *self.matrix.shape[1:]),)

    def parameters(self, rank: Rank) -> int:
        groups, m, n = self.matrix.shape
        return groups * rank[0] * (m + n)

    def lost(self, rank: Rank) -> float:
        return self.spectrum.lost(rank[0])


class MatrixSvd(MatrixLowRank):
    """linear(x, W, b) -> linear(linear(x, v), u, b), and take(W, i) -> linear(take(u, i), vᵀ), with W = u · v.

    Weights of several layers are stacked by rows: they share v, and each has a u of its own.
    """

    def _matrix(self) -> torch.Tensor:
        return torch.cat([tensor.double() for tensor in self.unit.tensors])[None]

    def parameters(self, rank: Rank) -> int:
        tied = {layer.name for layer in self.unit.layers} == {"linear", "take"}
        return super().parameters(rank) + (rank[0] * self.matrix.shape[2] if tied else 0)

    def factors(self, rank: Rank) -> dict[str, Factor]:
        (left,), (right,) = self.spectrum.factors(rank[0])
        names = {layer.name for layer in self.unit.layers}
        found = {}
        if "linear" in names:
            found["v"] = Factor(right, self.unit.key("v"))
        if "take" in names:
            found["vt"] = Factor(right.T, self.unit.key("vt"))
        rows = torch.split(left, [len(tensor) for tensor in self.unit.tensors])
        for index, part in enumerate(rows):
            found[f"u{index}"] = Factor(part, self.unit.key("u", index))
        return found

    def build(self, rewriter: Rewriter, layer: Operation, factors: Mapping[str, Value]) -> Value:
        name = layer.result.name
        if layer.name == "take":
            rows = rewriter.take(factors["u0"], layer.operand(1), axis=0, name_hint=f"{name}.u")
            return rewriter.linear(rows, factors["vt"], None)
        u = factors[f"u{self.unit.weights.index(layer.operand(1))}"]
        inner = _shared_inner(layer, factors["v"])
        if inner is None:
            inner = rewriter.linear(layer.operand(0), factors["v"], None, name_hint=f"{name}.v")
        return rewriter.linear(inner, u, bias_of(layer))


def _shared_inner(layer: Operation, v: Value) -> Value | None:
    """linear(x, v), where a layer that shares v has been rewritten already and reads the same x."""
    same = [user for user in v.users if user.operand(0) is layer.operand(0)]
    return same[0].result if same else None


class ChannelSvd(MatrixLowRank):
    """conv(x, W, b) -> conv1x1(conv(x, v), u, b): fewer channels between (Zhang et al., TPAMI 2016).

    W [o, i, *k] is the matrix [o, i · k], in each group.
    """

    def _matrix(self) -> torch.Tensor:
        groups = self.unit.layers[0].attributes["groups"]
        tensor = self.unit.tensor
        return tensor.reshape(groups, tensor.shape[0] // groups, -1)

    def factors(self, rank: Rank) -> dict[str, Factor]:
        left, right = self.spectrum.factors(rank[0])
        shape = self.unit.tensor.shape
        u = left.reshape(shape[0], rank[0], *ones(len(shape) - 2))
        v = right.reshape(-1, *shape[1:])
        return {"v": Factor(v, self.unit.key("v")), "u": Factor(u, self.unit.key("u"))}

    def build(self, rewriter: Rewriter, layer: Operation, factors: Mapping[str, Value]) -> Value:
        name = layer.result.name
        inner = rewriter.conv(layer.operand(0), factors["v"], None, name_hint=f"{name}.v", **layer.attributes)
        return pointwise(rewriter, layer, inner, factors["u"], bias_of(layer), groups=layer.attributes["groups"])


class SpatialSvd(MatrixLowRank):
    """conv(x, W, b) -> conv1xk(convkx1(x, v), u, b) (Jaderberg et al., BMVC 2014).

    W [o, i, y, x] = Σ_r u[o, r, x] v[r, i, y], the SVD of the matrix [o · x, i · y].
    Raises MatchFailure for convolutions that have not two kernel dimensions of more than 1, and for groups.
    """

    def _matrix(self) -> torch.Tensor:
        tensor = self.unit.tensor
        require_ungrouped(self.unit, "spatial")
        if tensor.dim() != 4 or min(tensor.shape[2:]) < 2:
            raise MatchFailure("spatial: the kernel has not two dimensions of more than 1", self.unit.weights[0])
        outputs, inputs, height, width = tensor.shape
        return tensor.permute(0, 3, 1, 2).reshape(1, outputs * width, inputs * height)

    def factors(self, rank: Rank) -> dict[str, Factor]:
        (left,), (right,) = self.spectrum.factors(rank[0])
        outputs, inputs, height, width = self.unit.tensor.shape
        v = right.reshape(rank[0], inputs, height, 1)
        u = left.reshape(outputs, width, rank[0]).movedim(1, 2)[:, :, None]
        return {"v": Factor(v, self.unit.key("v")), "u": Factor(u, self.unit.key("u"))}

    def build(self, rewriter: Rewriter, layer: Operation, factors: Mapping[str, Value]) -> Value:
        inner = along(rewriter, layer, layer.operand(0), factors["v"], None, (0,), hint="v")
        return along(rewriter, layer, inner, factors["u"], bias_of(layer), (1,))


def bias_of(layer: Operation) -> Value | None:
    """The bias of a layer (x, weight, bias?)."""
    return layer.operands[2] if len(layer.operands) > 2 else None


def ones(count: int) -> tuple[int, ...]:
    """The shape of a kernel of size 1."""
    return (1,) * count


def require_ungrouped(unit: Unit, method: str) -> None:
    """Guard. Raises MatchFailure for grouped convolutions."""
    groups = unit.layers[0].attributes["groups"]
    if groups > 1:
        raise MatchFailure(f"{method}: the convolution has {groups} groups", unit.weights[0])


def along(
    rewriter: Rewriter,
    layer: Operation,
    x: Value,
    weight: Value,
    bias: Value | None,
    dims: Sequence[int],
    groups: int = 1,
    hint: str = "",
) -> Value:
    """A convolution with the stride, padding and dilation of `layer` in the kernel dimensions `dims` alone."""
    given = layer.attributes
    neutral: dict[str, Any] = {"stride": 1, "padding": (0, 0), "dilation": 1}
    moved = {
        name: tuple(value if dim in dims else neutral[name] for dim, value in enumerate(given[name]))
        for name in neutral
    }
    name_hint = f"{layer.result.name}.{hint}" if hint else ""
    result: Value = rewriter.conv(x, weight, bias, name_hint=name_hint, groups=groups, layout=given["layout"], **moved)
    return result


def pointwise(
    rewriter: Rewriter, layer: Operation, x: Value, weight: Value, bias: Value | None, groups: int = 1, hint: str = ""
) -> Value:
    """A convolution with a 1x1 kernel."""
    return along(rewriter, layer, x, weight, bias, (), groups, hint)
