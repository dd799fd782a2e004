"""What a channel, neuron or head is worth: criteria of structured pruning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from whet.errors import PassError
from whet.ir.coupling import Coupling, Indices, Strand
from whet.ir.graph import Graph, Operation, Value
from whet.ir.interpreter import Interpreter
from whet.passes.base import Context
from whet.passes.data import Batches, TrainingBatch
from whet.passes.pruning.gradients import Loss, WeightLoss
from whet.passes.pruning.masks import Weight
from whet.passes.pruning.units import Group

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Slices:
    """The slices of one weight along one dimension, each part of a unit.

    Attributes:
        weight: number of the weight in `Candidates.weights`.
        dim: the dimension.
        makes: whether it is the weight's output dimension: its slices make the unit, others read it.
        labels: the unit that each slice belongs to; -1: none.
    """

    weight: int
    dim: int
    makes: bool
    labels: Indices


@dataclass(frozen=True)
class Candidates:
    """What a criterion is asked about: the worth of the units of `groups`.

    Attributes:
        loss: (model's outputs, labels) -> scalar, of criteria that need gradients; None: cross-entropy.
        readers: whether the weights that read a unit count beside those that make it.
    """

    graph: Graph
    coupling: Coupling
    groups: Sequence[Group]
    weights: Sequence[Weight]
    context: Context
    loss: Loss | None = None
    readers: bool = True

    def slices(self, group: Group) -> list[Slices]:
        """The weights' slices that go with the units of a group; without readers only where something makes them."""
        labels = dict(zip(group.strands, group.labels, strict=True))
        found = [
            Slices(number, dim, dim == weight.dims[0], labels[strand])
            for number, weight in enumerate(self.weights)
            for dim, strand in enumerate(self._strands[number])
            if strand in labels
        ]
        makers = [item for item in found if item.makes]
        return makers if makers and not self.readers else found

    @cached_property
    def _strands(self) -> list[list[Strand]]:
        return [
            [self.coupling.strand((weight.value.name, dim)) for dim in range(weight.tensor.dim())]
            for weight in self.weights
        ]


class Importance(ABC):
    """Units of small worth go first. Subclasses are frozen dataclasses: their fields are its options."""

    @abstractmethod
    def score(self, candidates: Candidates) -> list[Scores | None]:
        """One score a unit for each group, larger is worth more; None for a group that it says nothing about."""


def per_unit(values: torch.Tensor, labels: Indices, units: int) -> Scores:
    """Sum of one number an index over the indices of each unit."""
    inside = labels >= 0
    numbers = values.detach().double().cpu().numpy()[inside]
    return np.bincount(labels[inside], weights=numbers, minlength=units).astype(np.float64)


def along(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """[size of `dim`, all the rest]."""
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)


def _relative(scores: Scores) -> Scores:
    """Scores in units of their mean, so that large and small layers compare."""
    mean = float(scores.mean())
    return scores / mean if mean > 0 else scores


@dataclass(frozen=True)
class Norm(Importance):
    """(Σ |w|^p)^(1/p) over a unit's slice of a weight, relative to the mean over the units, averaged over weights.

    With `power` 1 and one weight this is I_i = Σ_j |W_ij| (Li et al., Pruning Filters for Efficient ConvNets, ICLR
    2017); the average over all weights of the group is that of Fang et al., DepGraph, CVPR 2023.
    """

    power: int = 1

    def score(self, candidates: Candidates) -> list[Scores | None]:
        return [self._score(candidates, group) for group in candidates.groups]

    def _score(self, candidates: Candidates, group: Group) -> Scores | None:
        found = []
        for item in candidates.slices(group):
            rows = along(candidates.weights[item.weight].tensor, item.dim)
            powers = torch.linalg.vector_norm(rows, self.power, dim=1, dtype=torch.float64) ** self.power
            found.append(_relative(per_unit(powers, item.labels, group.size) ** (1 / self.power)))
        return np.mean(found, axis=0) if found else None


@dataclass(frozen=True)
class Lamp(Importance):
    """s² / Σ t² over the units t of the group with t >= s, where s is the L2 norm (Lee et al., LAMP, ICLR 2021)."""

    def score(self, candidates: Candidates) -> list[Scores | None]:
        return [None if norms is None else _lamp(norms) for norms in Norm(2).score(candidates)]


def _lamp(norms: Scores) -> Scores:
    squares = norms**2
    order = np.argsort(-squares, kind="stable")
    scores = np.empty_like(squares)
    scores[order] = squares[order] / np.maximum(np.cumsum(squares[order]), np.finfo(np.float64).tiny)
    return scores


@dataclass(frozen=True)
class Fpgm(Importance):
    """Σ_j ‖w_i - w_j‖ over the slices of a weight: those near to the others' median go (He et al., FPGM, CVPR 2019)."""

    def score(self, candidates: Candidates) -> list[Scores | None]:
        return [self._score(candidates, group) for group in candidates.groups]

    def _score(self, candidates: Candidates, group: Group) -> Scores | None:
        found = []
        for item in candidates.slices(group):
            rows = along(candidates.weights[item.weight].tensor.float(), item.dim)
            inside = torch.from_numpy(item.labels >= 0)
            distances = torch.zeros(len(rows), dtype=torch.float64)
            distances[inside] = torch.cdist(rows[inside], rows[inside]).double().sum(1)
            found.append(_relative(per_unit(distances, item.labels, group.size)))
        return np.mean(found, axis=0) if found else None


@dataclass(frozen=True)
class Random(Importance):
    """Uniform numbers from the context's seed: what every criterion has to beat."""

    def score(self, candidates: Candidates) -> list[Scores | None]:
        generator = np.random.default_rng(candidates.context.seed)
        return [generator.random(group.size) for group in candidates.groups]


@dataclass(frozen=True)
class BatchNormScale(Importance):
    """Mean |γ| of the batch norms over a unit (Liu et al., Network Slimming, ICCV 2017), where they are not folded."""

    def score(self, candidates: Candidates) -> list[Scores | None]:
        scales = [
            (candidates.coupling.strand((value.name, 0)), value.constant)
            for operation in candidates.graph.operations
            if operation.name == "batch_norm" and (value := _operand(operation, 3)) is not None
        ]
        return [self._score(group, scales) for group in candidates.groups]

    def _score(self, group: Group, scales: Sequence[tuple[Strand, torch.Tensor | None]]) -> Scores | None:
        labels = dict(zip(group.strands, group.labels, strict=True))
        found = [
            per_unit(scale.abs(), labels[strand], group.size) / np.maximum(_sizes(labels[strand], group.size), 1)
            for strand, scale in scales
            if strand in labels and scale is not None
        ]
        return np.mean(found, axis=0) if found else None


def _sizes(labels: Indices, units: int) -> Indices:
    """How many indices each unit has."""
    return np.bincount(labels[labels >= 0], minlength=units)


def _operand(operation: Operation, slot: int) -> Value | None:
    return operation.operands[slot] if slot < len(operation.operands) else None


@dataclass(frozen=True)
class Taylor(Importance):
    """Σ |w · ∂L/∂w| over all weights of a unit, the gradient averaged over the train data: to first order, how the loss
    changes without it (Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019).

    Args:
        batches: how many batches to look at; None: all.
    """

    batches: int | None = None

    def score(self, candidates: Candidates) -> list[Scores | None]:
        total: list[torch.Tensor] = []
        count = 0
        for gradients in _gradients(candidates, self.batches):
            total = gradients if not total else [left + right for left, right in zip(total, gradients, strict=True)]
            count += 1
        weights = candidates.weights
        return _sums(
            candidates, [(item.tensor * sums / count).abs() for item, sums in zip(weights, total, strict=True)]
        )


@dataclass(frozen=True)
class Hessian(Importance):
    """Σ mean (w · ∂L/∂w)² over all weights of a unit: ½ w² ∂²L/∂w² with the Fisher information for the Hessian's
    diagonal (LeCun et al., Optimal Brain Damage, 1990; Theis et al., 2018), the mean over batches.

    Args:
        batches: how many batches to look at; None: all.
    """

    batches: int | None = None

    def score(self, candidates: Candidates) -> list[Scores | None]:
        total = [torch.zeros_like(weight.tensor) for weight in candidates.weights]
        for gradients in _gradients(candidates, self.batches):
            for place, (weight, gradient) in enumerate(zip(candidates.weights, gradients, strict=True)):
                total[place] = total[place] + (weight.tensor * gradient).square()
        return _sums(candidates, total)


def _gradients(candidates: Candidates, batches: int | None) -> Iterator[list[torch.Tensor]]:
    """The loss's gradient of each batch at all weights. Raises PassError without data and where it is not finite."""
    if batches is not None and batches < 1:
        raise PassError(f"a criterion looks at one batch at least, got batches={batches}")
    loss = WeightLoss(candidates.graph, candidates.weights, candidates.context, candidates.loss)
    data: Iterator[TrainingBatch] = iter(loss.batches) if batches is None else loss.steps(batches)
    for done, batch in enumerate(data):
        candidates.context.progress("importance by gradients", done, batches or 0)
        leaves = [weight.tensor.detach().clone().requires_grad_() for weight in candidates.weights]
        found = torch.autograd.grad(loss(leaves, batch), leaves, allow_unused=True)
        gradients = [torch.zeros_like(leaf) if item is None else item for leaf, item in zip(leaves, found, strict=True)]
        if not all(bool(torch.isfinite(item).all()) for item in gradients):
            raise PassError("a gradient on the train data is not finite: there is nothing to rank by")
        yield gradients


def _sums(candidates: Candidates, saliency: Sequence[torch.Tensor]) -> list[Scores | None]:
    """One number an element of each weight, summed over the units; these compare between groups as they are."""
    found: list[Scores | None] = []
    for group in candidates.groups:
        parts = [
            per_unit(along(saliency[item.weight], item.dim).sum(1), item.labels, group.size)
            for item in candidates.slices(group)
        ]
        found.append(np.sum(parts, axis=0) if parts else None)
    return found


@dataclass(frozen=True)
class ActivationMean(Importance):
    """Mean |x| over the calibration data of what the layers of a group read, relative to the mean over the units
    (after Hu et al., Network Trimming, 2016, and Molchanov et al., ICLR 2017).
    """

    def score(self, candidates: Candidates) -> list[Scores | None]:
        watched = [self._watched(candidates, group) for group in candidates.groups]
        means = _mean_magnitudes(candidates, {place for places in watched for place, _ in places})
        found: list[Scores | None] = []
        for group, places in zip(candidates.groups, watched, strict=True):
            parts = [_relative(per_unit(means[place], labels, group.size)) for place, labels in places]
            found.append(np.mean(parts, axis=0) if parts else None)
        return found

    def _watched(self, candidates: Candidates, group: Group) -> list[tuple[tuple[Value, int], Indices]]:
        """Values and dimensions that the units are in, and the unit of each index."""
        labels = dict(zip(group.strands, group.labels, strict=True))
        values = dict.fromkeys(value for weight in candidates.weights for value in _activations(weight))
        return [
            ((value, dim), labels[strand])
            for value in values
            for dim in range(value.type.rank)
            if (strand := candidates.coupling.strand((value.name, dim))) in labels
        ]


def _activations(weight: Weight) -> Iterator[Value]:
    """What the layers of a weight read, beside weights."""
    for layer, slot in weight.layers:
        yield from (layer.operand(0),) if slot else (layer.results[0],)


def _mean_magnitudes(candidates: Candidates, places: set[tuple[Value, int]]) -> dict[tuple[Value, int], torch.Tensor]:
    sums: dict[tuple[Value, int], torch.Tensor] = {}
    dims: dict[Value, list[int]] = {}
    for value, dim in places:
        dims.setdefault(value, []).append(dim)

    def hook(operation: Operation, results: tuple[torch.Tensor, ...]) -> None:
        for value, tensor in zip(operation.results, results, strict=True):
            for dim in dims.get(value, ()):
                mean = along(tensor.detach().abs().double(), dim).mean(1)
                sums[value, dim] = sums.get((value, dim), torch.zeros_like(mean)) + mean

    interpreter = Interpreter(candidates.graph, hook=hook)
    with torch.no_grad():
        for batch in Batches(candidates.context.calibration, candidates.graph):
            interpreter(*batch)
    return sums


CRITERIA: Final[dict[str, Callable[[], Importance]]] = {
    "activation": ActivationMean,
    "bn_scale": BatchNormScale,
    "fpgm": Fpgm,
    "hessian": Hessian,
    "l1": Norm,
    "l2": lambda: Norm(2),
    "lamp": Lamp,
    "random": Random,
    "taylor": Taylor,
}
"""Criteria by the name that `StructuredPruning` takes, each with its default options."""


def find_importance(criterion: str | Importance) -> Importance:
    """The criterion of that name, or the one given. Raises PassError for a name that there is not."""
    if isinstance(criterion, Importance):
        return criterion
    if criterion not in CRITERIA:
        raise PassError(f"criterion is one of {sorted(CRITERIA)}, or an Importance; got {criterion!r}")
    return CRITERIA[criterion]()
