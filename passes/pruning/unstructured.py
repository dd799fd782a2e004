"""Pruning single elements of weights, by masks that stay visible in the graph."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from whet.errors import PassError
from whet.ir.graph import Graph, Value
from whet.passes.base import Context, Pass, PassResult
from whet.passes.pruning.criteria import Magnitude, find_criterion
from whet.passes.pruning.criterion import Criterion, Question, require_positive
from whet.passes.pruning.gradients import Loss
from whet.passes.pruning.masks import WEIGHT_SLOTS, Weight, apply_masks, find_weights, pruned_elements
from whet.passes.pruning.ranking import kept_globally, kept_locally, require_ratio, require_scope
from whet.passes.selection import require_matches, select_layers

_DEFAULT_RATIO = 0.5


@dataclass(frozen=True)
class UnstructuredPruning(Pass):
    """weight -> masked(weight, mask) for linear, convolutional, recurrent and embedding layers, tied weights once.

    The mask is False where an element is pruned. A weight that has a mask keeps what that has pruned.

    How much, one of:
        ratio: share of elements to prune, in [0, 1), exact to half an element; without any of these it is 0.5.
        ratios: the same by pattern (fnmatch) of module paths, the first that fits; layers that none fits are pruned
            by `ratio`, or not at all.
        threshold: elements whose score is smaller go; for magnitude, |w| < threshold.
        sigma: |w| < sigma · (standard deviation of the weight's unpruned elements) goes (Han et al., NeurIPS 2015).

    Args:
        criterion: "magnitude", "lamp", "random", "gradient", "taylor", "movement", "l0", or one with its options,
            as `whet.passes.pruning.criteria.Movement(iterations=50)`. The last four look at context.train.
        scope: "local" ranks within each weight, "global" over all of them.
        exclude: patterns of module paths of layers that stay as they are.
        loss: (model's outputs, labels) -> scalar; None: cross-entropy.
        steps: prune in so many steps, step t of n to sparsity ratio · (1 - (1 - t / n)³) (Zhu & Gupta 2017).
        recovery: a pass to run between the steps, as `FineTune(epochs=1)`.

    Raises PassError for numbers out of their range, options that contradict each other, unknown criteria, patterns
    that fit nothing, and missing data.
    """

    ratio: float | None = None
    threshold: float | None = None
    criterion: str | Criterion = "magnitude"
    scope: str = "local"
    exclude: tuple[str, ...] = ()
    sigma: float | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    loss: Loss | None = None
    steps: int = 1
    recovery: Pass | None = None
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Changes: weights that got another mask in the last step that did anything, and elements pruned in all."""
        criterion = find_criterion(self.criterion)
        self._check(graph)
        before = pruned_elements(find_weights(graph, self.exclude, self.name, context.tracer))
        masked = 0
        for step in range(1, self.steps + 1):
            if step > 1 and self.recovery is not None:
                graph = self.recovery.run(graph, context).graph
            if self.steps > 1:
                context.progress("pruning in steps", step, self.steps)
            graph, changed = self._step(graph, context, criterion, cubic(step, self.steps))
            masked = changed or masked
        if not masked:
            return PassResult(graph, False)
        after = pruned_elements(find_weights(graph, self.exclude))
        return PassResult(graph, True, {"weight masked": masked, "element pruned": after - before})

    def _step(self, graph: Graph, context: Context, criterion: Criterion, share: float) -> tuple[Graph, int]:
        clone = graph.clone()
        weights = self._wanted(find_weights(clone, self.exclude))
        if not weights:
            return graph, 0
        scores = criterion.score(Question(clone, weights, context, self.loss))
        changed = apply_masks(clone, self._masks(weights, scores, share))
        return (clone, changed) if changed else (graph, 0)

    def _wanted(self, weights: Sequence[Weight]) -> list[Weight]:
        """Those with an amount: where only `ratios` is given, those that fit one of its patterns."""
        everywhere = self.ratio is not None or not self.ratios
        return [weight for weight in weights if everywhere or self._pattern(weight) is not None]

    def _pattern(self, weight: Weight) -> str | None:
        modules = [layer.location.module for layer, _ in weight.layers]
        return next((pattern for pattern in self.ratios if fnmatch.filter(modules, pattern)), None)

    def _masks(
        self, weights: Sequence[Weight], scores: Sequence[torch.Tensor], share: float
    ) -> dict[Value, torch.Tensor]:
        values = [weight.value for weight in weights]
        pruned = [weight.pruned for weight in weights]
        ratio = _DEFAULT_RATIO if self.ratio is None else self.ratio
        if self.threshold is not None or self.sigma is not None:
            return {w.value: score >= self._limit(w) for w, score in zip(weights, scores, strict=True)}
        if self.scope == "global":
            return dict(zip(values, kept_globally(scores, pruned, ratio * share), strict=True))
        ratios = [ratio if pattern is None else self.ratios[pattern] for pattern in map(self._pattern, weights)]
        triples = zip(scores, pruned, ratios, strict=True)
        return dict(zip(values, [kept_locally(s, p, share * r) for s, p, r in triples], strict=True))

    def _limit(self, weight: Weight) -> float:
        if self.threshold is not None:
            return self.threshold
        assert self.sigma is not None
        return self.sigma * float(weight.tensor[~weight.pruned].double().std(correction=0))

    def _check(self, graph: Graph) -> None:
        amounts = {"ratio": self.ratio, "threshold": self.threshold, "sigma": self.sigma}
        given = {name: amount for name, amount in amounts.items() if amount is not None}
        if len(given) > 1 or (self.ratios and not given.keys() <= {"ratio"}):
            raise PassError(f"{self.name} takes one of ratio (and ratios), threshold and sigma, got {given}")
        for what, ratio in {"ratio": self.ratio or 0.0, **self.ratios}.items():
            require_ratio(self.name, ratio, what)
        for what, amount in given.items() - {("ratio", self.ratio)}:
            require_positive(self.name, **{what: amount})
        require_scope(self.name, self.scope)
        if self.sigma is not None and not isinstance(find_criterion(self.criterion), Magnitude):
            raise PassError(f"{self.name}: sigma measures magnitudes; it takes no other criterion")
        if self.scope == "global" and self.ratios:
            raise PassError(f"{self.name}: ratios are per layer, scope='global' ranks all layers together")
        self._check_steps(given)
        modules = (operation.location.module for operation in select_layers(graph, WEIGHT_SLOTS))
        require_matches("ratios", self.ratios, modules)

    def _check_steps(self, given: Mapping[str, float]) -> None:
        if self.steps < 1:
            raise PassError(f"{self.name}'s steps must be positive, got {self.steps}")
        if self.steps > 1 and not given.keys() <= {"ratio"}:
            raise PassError(f"{self.name}: steps lead to a ratio; a threshold or sigma has none")
        if self.steps == 1 and self.recovery is not None:
            raise PassError(f"{self.name}: recovery runs between steps, and steps=1 has nothing between them")


def cubic(step: int, steps: int) -> float:
    """Share of the final sparsity after `step` of `steps`: 1 - (1 - step / steps)³ (Zhu & Gupta 2017)."""
    return 1.0 - (1.0 - step / steps) ** 3
