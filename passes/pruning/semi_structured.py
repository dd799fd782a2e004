"""N:M sparsity: a fixed number of elements of every few inputs, as sparse tensor cores take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch

from whet.errors import PassError
from whet.ir.graph import Graph, Operation
from whet.passes.base import Context, Pass, PassResult
from whet.passes.pruning.criteria import find_criterion
from whet.passes.pruning.criterion import Criterion, Question
from whet.passes.pruning.gradients import Loss
from whet.passes.pruning.masks import Weight, apply_masks, find_weights, from_matrix, pruned_elements, to_matrix
from whet.passes.rewrite.tracer import Tracer

_NOTHING_TO_SUM: Final = frozenset({"take"})
"""Layers that pick inputs in place of summing over them."""


@dataclass(frozen=True)
class NMPruning(Pass):
    """At most n of every m consecutive inputs of an output stay (Mishra et al., Accelerating Sparse DNNs, 2021).

    The inputs of a linear layer are the columns of its weight; those of a convolution its input channels, at each
    position of the kernel and within each group. A layer whose number of inputs m does not divide is left as it is,
    with the reason in the tracer.

    Args:
        n: elements that stay of every m, 0 < n <= m.
        m: length of a group.
        criterion: which stay: those of the largest scores; see UnstructuredPruning.
        exclude: patterns (fnmatch) of module paths of layers that stay as they are.
        loss: (model's outputs, labels) -> scalar, for criteria that look at context.train; None: cross-entropy.

    Raises PassError for n and m that are no pattern, unknown criteria, patterns that fit nothing, and missing data.
    """

    n: int = 2
    m: int = 4
    criterion: str | Criterion = "magnitude"
    exclude: tuple[str, ...] = ()
    loss: Loss | None = None
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Changes: weights that got another mask, and elements pruned."""
        if not 0 < self.n <= self.m:
            raise PassError(f"NMPruning keeps n of every m elements, 0 < n <= m; got n={self.n}, m={self.m}")
        criterion = find_criterion(self.criterion)
        clone = graph.clone()
        found = find_weights(clone, self.exclude, self.name, context.tracer)
        weights = [weight for weight in found if self._fits(weight, context.tracer)]
        if not weights:
            return PassResult(graph, False)
        scores = criterion.score(Question(clone, weights, context, self.loss))
        masks = {w.value: kept_of_groups(w, score, self.n, self.m) for w, score in zip(weights, scores, strict=True)}
        masked = apply_masks(clone, masks)
        if not masked:
            return PassResult(graph, False)
        pruned = pruned_elements(find_weights(clone, self.exclude)) - pruned_elements(found)
        return PassResult(clone, True, {"weight masked": masked, "element pruned": pruned})

    def _fits(self, weight: Weight, tracer: Tracer | None) -> bool:
        layer, slot = weight.layers[0]
        reason = ""
        if layer.name in _NOTHING_TO_SUM:
            reason = f"{layer.name} sums over no inputs"
        elif (inputs := summed_inputs(layer, slot)) % self.m:
            reason = f"{inputs} inputs do not divide into groups of {self.m}"
        if reason and tracer is not None:
            tracer.decline(self.name, layer, reason, (weight.value,))
        return not reason


def summed_inputs(layer: Operation, slot: int) -> int:
    """How many inputs, for each kernel position, one output of a layer sums over."""
    shape = layer.operand(slot).type.static_shape
    if layer.name == "conv_transpose":
        return shape[0] // int(layer.attributes["groups"])
    return shape[0] if layer.name == "matmul" else shape[1]


def kept_of_groups(weight: Weight, scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """The mask that keeps the n best of every m inputs; what was pruned before is never among them."""
    worth = to_matrix(scores.masked_fill(weight.pruned, -torch.inf), weight.dims)
    outputs, inputs, positions = worth.shape
    groups = worth.reshape(outputs, inputs // m, m, positions)
    # stable: of equal scores the first stay, whatever the machine
    best = groups.sort(dim=2, descending=True, stable=True).indices[:, :, :n]
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, best, True)
    return from_matrix(kept.reshape(worth.shape), weight.dims, weight.tensor.shape)
