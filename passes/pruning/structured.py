"""Structured pruning: channels, neurons and attention heads that are really removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from whet.errors import PassError
from whet.ir.coupling import Coupling, Mask, Strand, dimensions_of
from whet.ir.graph import Graph
from whet.ir.views import tie_graph
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import DeadCodeElimination
from whet.passes.pruning.budget import Budget
from whet.passes.pruning.choose import SCOPES, Chooser, Rounding, structures
from whet.passes.pruning.gradients import Loss
from whet.passes.pruning.importance import Candidates, Importance, find_importance
from whet.passes.pruning.masks import WEIGHT_SLOTS, Weight, find_weights
from whet.passes.pruning.ranking import require_ratio
from whet.passes.pruning.resize import resize
from whet.passes.pruning.units import Group, find_groups
from whet.passes.selection import excluded, select_layers
from whet.passes.untie_states import UntieStates

_DEFAULT_RATIO: Final = 0.5
_HALVINGS: Final = 10
"""Steps of the search for a ratio that keeps a budget: it is found to a thousandth."""
_FLOAT_BITS: Final = 32


@dataclass(frozen=True)
class StructuredPruning(Pass):
    """Remove channels, neurons and attention heads, and everything that depends on them, from weights and graph.

    What must go together follows from the operations' ties (Fang et al., DepGraph, CVPR 2023): a channel with the rows
    of the layers that make it, its normalizations, and the columns of all layers that read it, through residual sums,
    concatenations, splits and reshapes. Of an attention whole heads go, where it has several (with grouped keys a
    key head and all query heads that share it). Inputs and outputs of the graph keep their shapes. Weights that the
    model computes from others (weight standardization) count once ConstantFolding has made constants of them.

    How much, one of:
        ratio: with scope "local", the share of channels removed of each group; else of all units that are ranked
            together. In [0, 1), rounded down; without any of these it is 0.5.
        budget: what may be left of the whole graph; the smallest ratio that keeps it is searched. Where no ratio does,
            the smallest graph is the result, and a change "budget missed: ..." says how far it came.

    Args:
        criterion: "l1", "l2", "random", "taylor", "hessian" (both look at context.train), "bn_scale", "lamp", "fpgm",
            "activation" (looks at context.calibration), or one with its options, as
            `whet.passes.pruning.importance.Taylor(batches=8)`.
        scope: "local", "global" or "isomorphic" ranking; see `whet.passes.pruning.choose.Chooser`.
        round_to: channels that are left of a dimension of a weight are a multiple of this; None: of the target's
            vector width (in f32), or of a smaller power of two where that would leave less than three quarters of the
            removals. 1 rounds nothing.
        exclude: patterns of module paths (fnmatch) of layers whose weights keep their shapes.
        limit: the largest share of a dimension that may go with a budget, or with scope "global" or "isomorphic".
        readers: whether the weights that read a channel count for its worth, beside those that make it.
        loss: (model's outputs, labels) -> scalar, for criteria that need gradients; None: cross-entropy.
        steps: remove in so many steps of equal numbers of channels, ranked anew before each.
        recovery: a pass to run between the steps and after the last, as `FineTune(epochs=1)`.

    Raises PassError for numbers out of their range, options that contradict each other, unknown names, patterns that
    fit nothing, and missing data.
    """

    ratio: float | None = None
    criterion: str | Importance = "l1"
    scope: str = "local"
    budget: Budget | None = None
    round_to: int | None = None
    exclude: tuple[str, ...] = ()
    limit: float = 0.9
    readers: bool = True
    loss: Loss | None = None
    steps: int = 1
    recovery: Pass | None = None
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Changes: units (channels, neurons, heads) removed, groups that lost some, and a budget that was missed."""
        self._check()
        select_layers(graph, WEIGHT_SLOTS, self.exclude)
        original, changes = graph, {"unit removed": 0, "group pruned": 0}
        graph = _untied(graph)
        for step in range(1, self.steps + 1):
            if self.steps > 1:
                context.progress("pruning in steps", step, self.steps)
            plan = _Plan(graph, self, context)
            ratio = self._ratio(step) if self.budget is None else self._search(plan, original, step)
            masks = plan.chooser.choose(ratio)
            changes["unit removed"] += sum(int(mask.sum()) for mask in masks)
            changes["group pruned"] = max(changes["group pruned"], sum(bool(mask.any()) for mask in masks))
            graph = plan.without(masks)
            if self.recovery is not None:
                graph = self.recovery.run(graph, context).graph
        if not changes["unit removed"]:
            return PassResult(original, False)
        return PassResult(graph, True, changes | self._missed(original, graph))

    def _check(self) -> None:
        if self.ratio is not None and self.budget is not None:
            raise PassError("StructuredPruning takes a ratio or a budget, not both")
        require_ratio(self.name, _DEFAULT_RATIO if self.ratio is None else self.ratio)
        require_ratio(self.name, self.limit, "limit")
        if self.scope not in SCOPES:
            raise PassError(f"scope is one of {', '.join(SCOPES)}; got {self.scope!r}")
        for option, number in (("steps", self.steps), ("round_to", 1 if self.round_to is None else self.round_to)):
            if number < 1:
                raise PassError(f"StructuredPruning's {option} must be at least 1, got {number}")
        find_importance(self.criterion)

    def _ratio(self, step: int) -> float:
        """The share to remove of what is left, so that all steps remove the same number of channels."""
        ratio = _DEFAULT_RATIO if self.ratio is None else self.ratio
        before, after = (1 - ratio * done / self.steps for done in (step - 1, step))
        return 1 - after / before

    def _search(self, plan: _Plan, original: Graph, step: int) -> float:
        """The ratio that keeps the budget of a step, which comes down to the whole one in equal steps."""
        budget = self.budget
        assert budget is not None
        whole = budget.measure(original)
        allowed = whole - (whole - budget.limit(original)) * step / self.steps
        return plan.smallest(lambda graph: budget.measure(graph) <= allowed, self.limit)

    def _missed(self, original: Graph, graph: Graph) -> dict[str, int]:
        if self.budget is None or self.budget.measure(graph) <= self.budget.limit(original):
            return {}
        reached, allowed = self.budget.measure(graph), self.budget.limit(original)
        why = f"{reached} {self.budget.kind} are left, {allowed:.0f} were allowed"
        return {f"budget missed: {why}; no dimension may lose more than {self.limit:.0%}": 1}


def prunable_groups(graph: Graph, exclude: Sequence[str] = ()) -> list[Group]:
    """Everything that could be removed from a graph: groups of channels, neurons and heads, in order.

    Args:
        exclude: patterns of module paths (fnmatch) of layers whose weights keep their shapes.
    """
    graph = _untied(graph)
    return _Dimensions(graph, find_weights(graph), exclude).groups()


def _untied(graph: Graph) -> Graph:
    """The graph without what ties dimensions together and computes nothing: dead operations, shared initial states."""
    for item in (UntieStates(), DeadCodeElimination()):
        graph = item.run(graph, Context()).graph
    return graph


class _Dimensions:
    """The dimensions of the weights of a graph, and what their indices depend on."""

    def __init__(self, graph: Graph, weights: Sequence[Weight], exclude: Sequence[str]) -> None:
        self.graph = graph
        self.coupling = Coupling(tie_graph(graph))
        self.channels = {strand for weight in weights for strand in self._strands(weight) if strand.pinned is None}
        self._kept = {strand for weight in weights if _is_excluded(weight, exclude) for strand in self._strands(weight)}

    def _strands(self, weight: Weight) -> list[Strand]:
        return [self.coupling.strand((weight.value.name, dim)) for dim in range(weight.tensor.dim())]

    def groups(self) -> list[Group]:
        return find_groups(self.graph, self.coupling, self.channels, self._kept)


def _is_excluded(weight: Weight, exclude: Sequence[str]) -> bool:
    return any(excluded(layer, exclude) for layer, _ in weight.layers)


class _Plan:
    """What can be removed from one graph, and what it is worth."""

    def __init__(self, graph: Graph, options: StructuredPruning, context: Context) -> None:
        self.graph = graph
        weights = find_weights(graph, (), options.name, context.tracer)
        dimensions = _Dimensions(graph, weights, options.exclude)
        self.coupling = dimensions.coupling
        groups = dimensions.groups()
        candidates = Candidates(graph, self.coupling, groups, weights, context, options.loss, options.readers)
        scores = find_importance(options.criterion).score(candidates) if groups else []
        ranked = [(group, item) for group, item in zip(groups, scores, strict=True) if item is not None]
        unranked = [group for group, item in zip(groups, scores, strict=True) if item is None]
        _tell_unranked(candidates, unranked, options)
        self.groups = [group for group, _ in ranked]
        self.chooser = Chooser(
            self.groups,
            [item for _, item in ranked],
            dimensions.channels,
            _rounding(options, context),
            options.scope,
            options.limit,
            structures(graph, self.groups),
        )

    def without(self, masks: Sequence[Mask]) -> Graph:
        """The graph without the chosen units of each group."""
        removed: dict[Strand, Mask] = {}
        for group, units in zip(self.groups, masks, strict=True):
            removed.update(group.masks(units))
        return resize(self.graph, dimensions_of(self.coupling.close(removed)))

    def smallest(self, fits: Callable[[Graph], bool], limit: float) -> float:
        """The smallest ratio whose graph fits; `limit` where none up to there does."""
        if fits(self.graph):
            return 0.0
        low, high = 0.0, limit
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if fits(self.without(self.chooser.choose(middle))) else (middle, high)
        return high


def _tell_unranked(candidates: Candidates, groups: Sequence[Group], options: StructuredPruning) -> None:
    """Tell the tracer of groups that the criterion says nothing about."""
    tracer = candidates.context.tracer
    if tracer is None:
        return
    for group in groups:
        for item in candidates.slices(group):
            weight = candidates.weights[item.weight]
            reason = f"criterion {options.criterion!r} says nothing of its channels"
            tracer.decline(options.name, weight.layers[0][0], reason, (weight.value,))


def _rounding(options: StructuredPruning, context: Context) -> Rounding:
    if options.round_to is not None:
        return Rounding(options.round_to, exact=True)
    width = 1 if context.target is None else context.target.vector_bits // _FLOAT_BITS
    return Rounding(width, exact=False)
