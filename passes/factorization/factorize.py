"""Low-rank factorization: one large weight becomes the product of small ones, one layer several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch

from whet.errors import PassError
from whet.ir.graph import Graph, Operation, Value
from whet.passes.base import Context, Pass, PassResult
from whet.passes.factorization.canonical_polyadic import CanonicalPolyadic
from whet.passes.factorization.low_rank import Factor, LowRank, Unit
from whet.passes.factorization.matrices import ChannelSvd, MatrixSvd, SpatialSvd
from whet.passes.factorization.ranks import Choice, by_budget, by_energy, by_rank, by_ratio
from whet.passes.factorization.tucker import Tucker2
from whet.passes.factorization.units import find_units
from whet.passes.factorization.whitening import input_roots
from whet.passes.pruning.ranking import require_scope
from whet.passes.rewrite import MatchFailure, Rewriter, Tracer

_DEFAULT_ENERGY: Final = 0.9

METHODS: Final[Mapping[str, Mapping[str, type[LowRank]]]] = {
    "auto": {"linear": MatrixSvd, "take": MatrixSvd, "conv": Tucker2},
    "svd": {"linear": MatrixSvd, "take": MatrixSvd, "conv": ChannelSvd},
    "whitened": {"linear": MatrixSvd, "take": MatrixSvd, "conv": ChannelSvd},
    "channel": {"conv": ChannelSvd},
    "spatial": {"conv": SpatialSvd},
    "tucker": {"conv": Tucker2},
    "cp": {"conv": CanonicalPolyadic},
}
"""Method -> layer -> how its weight is factored; a layer that is missing stays whole."""


@dataclass(frozen=True)
class Factorize(Pass):
    """Weights of linear, embedding and convolutional layers as products of small ones, where those hold fewer elements.

    What a layer becomes, with the bias on the last operation; factors are called like "fc.weight.v" (applied first)
    and "fc.weight.u" (last), and have components of equal norm, √S on both sides of an SVD:

        svd       linear(linear(x, v), u, b), embeddings likewise; conv as channel
        whitened  the same, best for the outputs on context.calibration (Wang et al., SVD-LLM, ICLR 2025);
                  embeddings by svd
        channel   conv1x1(conv(x, v), u, b), groups stay groups (Zhang et al., TPAMI 2016)
        spatial   conv1xk(convkx1(x, v), u, b) (Jaderberg et al., BMVC 2014)
        tucker    conv1x1(conv(conv1x1(x, v), core), u, b) (Kim et al., ICLR 2016)
        cp        conv1x1, a depthwise convolution a kernel dimension, conv1x1 (Lebedev et al., ICLR 2015)
        auto      svd; for convolutions tucker, but channel for 1x1 kernels and with groups

    How much stays, one of (none: energy=0.9):
        ratio: share of the parameters of each weight, in (0, 1); with scope="global" of all weights together.
        energy: share of ‖W‖² of each weight (for whitened, of the outputs' energy), in (0, 1].
        rank: of every weight, or full rank where that is smaller; for tucker of both its dimensions.
        budget: parameters of all selected weights together. Ranks are chosen so that all lose the same share of energy;
            where none are small enough, the smallest are the result, and a change "budget missed: ..." says so.

    Args:
        method: see above. Layers that a method does not know stay whole.
        exclude: patterns (fnmatch) of module paths of layers that stay whole.
        scope: of `ratio`: "local" or "global".
        joint: linear layers that read the same value, as query, key and value projections do, share v.
        allow_larger: factorize also where the factors hold as many parameters as the weight, or more.

    Pruned and shared weights are factored as the dense weights that they stand for. Which layers stay whole, and
    why, is told to the tracer.

    Raises PassError for numbers out of range, several of them, unknown methods, and patterns that fit nothing.
    """

    ratio: float | None = None
    energy: float | None = None
    rank: int | None = None
    method: str = "auto"
    exclude: tuple[str, ...] = ()
    budget: int | None = None
    scope: str = "local"
    joint: bool = False
    allow_larger: bool = False
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Changes: layers factorized, by kind, and by how many parameters there are fewer."""
        self._check()
        clone = graph.clone()
        units = find_units(clone, self.exclude, self.joint, self.name, context.tracer)
        forms = self._forms(clone, units, context)
        elements = sum(unit.elements for unit in units)
        choices = self._choices(forms, elements, elements - sum(form.unit.elements for form in forms))
        rewriter = Rewriter(clone)
        changes: Counter[str] = Counter()
        for index, (form, choice) in enumerate(zip(forms, choices, strict=True)):
            context.progress("factorizing", index, len(forms))
            changes += self._apply(rewriter, form, choice, context.tracer)
        rewriter.commit()
        if not changes:
            return PassResult(graph, False)
        return PassResult(clone, True, dict(changes) | self._missed(elements, elements - changes["parameter saved"]))

    def _missed(self, elements: int, left: int) -> dict[str, int]:
        """A change that tells of a budget which even the smallest ranks do not keep."""
        allowed = self.budget
        if self.ratio is not None and self.scope == "global":
            allowed = int(self.ratio * elements)
        if allowed is None or left <= allowed:
            return {}
        return {f"budget missed: {left} parameters are left, {allowed} were allowed": 1}

    def _check(self) -> None:
        given = {
            name: amount
            for name in ("ratio", "energy", "rank", "budget")
            if (amount := getattr(self, name)) is not None
        }
        if len(given) > 1:
            raise PassError(f"{self.name} takes one of ratio, energy, rank and budget, got {given}")
        if self.method not in METHODS:
            raise PassError(f"there is no method {self.method!r} to factorize; known are {', '.join(METHODS)}")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise PassError(f"{self.name}'s ratio is the share of parameters that stay, in (0, 1); got {self.ratio}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise PassError(f"{self.name}'s energy is the share of ‖W‖² that stays, in (0, 1]; got {self.energy}")
        for name in ("rank", "budget"):
            if given.get(name, 1) < 1:
                raise PassError(f"{self.name}'s {name} must be positive, got {given[name]}")
        require_scope(self.name, self.scope)
        if self.scope == "global" and self.ratio is None:
            raise PassError(f"{self.name}: scope='global' is for ratio=; budget= is global by itself")
        if self.method == "cp" and self.rank is None and (self.ratio is None or self.scope == "global"):
            raise PassError("CP has no singular values to choose a rank by: give rank=, or ratio= for each layer")

    def _forms(self, graph: Graph, units: Sequence[Unit], context: Context) -> list[LowRank]:
        roots: dict[Unit, torch.Tensor] = {}
        if self.method == "whitened":
            whitened = [unit for unit in units if all(layer.name != "take" for layer in unit.layers)]
            roots = dict(zip(whitened, input_roots(graph, whitened, context), strict=True))
        forms = []
        for unit in units:
            try:
                forms.append(self._form(unit, roots))
            except MatchFailure as decline:
                _tell(context.tracer, self.name, unit, decline.reason)
        return forms

    def _form(self, unit: Unit, roots: Mapping[Unit, torch.Tensor]) -> LowRank:
        layer = next((item for item in unit.layers if item.name != "take"), unit.layers[0])
        kind = METHODS[self.method].get(layer.name)
        if kind is None:
            raise MatchFailure(f"{self.method} is no method for {layer.name}")
        if self.method == "auto" and layer.name == "conv" and _is_pointwise_or_grouped(layer):
            kind = ChannelSvd
        return kind(unit, roots.get(unit))

    def _choices(self, forms: Sequence[LowRank], elements: int, whole: int) -> list[Choice]:
        """One a form; `whole` of all `elements` belong to weights that have none."""
        if self.budget is not None:
            return by_budget(forms, self.budget - whole)
        if self.ratio is not None and self.scope == "global":
            return by_budget(forms, self.ratio * elements - whole)
        if self.ratio is not None:
            return [by_ratio(form, self.ratio) for form in forms]
        if self.rank is not None:
            return [by_rank(form, self.rank) for form in forms]
        energy = _DEFAULT_ENERGY if self.energy is None else self.energy
        return [by_energy(form, energy) for form in forms]

    def _apply(self, rewriter: Rewriter, form: LowRank, choice: Choice, tracer: Tracer | None) -> Counter[str]:
        unit = form.unit
        if choice.rank is None:
            _tell(tracer, self.name, unit, choice.reason)
            return Counter()
        parameters = form.parameters(choice.rank)
        if parameters >= unit.elements and not self.allow_larger:
            reason = f"factors of rank {choice.rank} hold {parameters} parameters, the weight {unit.elements}"
            _tell(tracer, self.name, unit, reason)
            return Counter()
        constants = _Constants(rewriter, form.factors(choice.rank), unit.tensors[0].dtype)
        for layer in unit.layers:
            rewriter.begin(layer, [layer])
            rewriter.replace(layer, [form.build(rewriter, layer, constants)])
        counts = Counter(f"{layer.name} factorized" for layer in unit.layers)
        counts["parameter saved"] = unit.elements - parameters
        return counts


class _Constants(Mapping[str, Value]):
    """Factors as constants, each emitted where it is first asked for: by the first layer that reads it."""

    def __init__(self, rewriter: Rewriter, factors: Mapping[str, Factor], dtype: torch.dtype) -> None:
        self._rewriter = rewriter
        self._factors = factors
        self._dtype = dtype
        self._made: dict[str, Value] = {}

    def __getitem__(self, role: str) -> Value:
        if role not in self._made:
            factor = self._factors[role]
            self._made[role] = self._rewriter.constant(factor.tensor.to(self._dtype).contiguous(), factor.key)
        return self._made[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._factors)

    def __len__(self) -> int:
        return len(self._factors)


def _is_pointwise_or_grouped(layer: Operation) -> bool:
    return layer.attributes["groups"] > 1 or max(layer.operand(1).type.static_shape[2:]) == 1


def _tell(tracer: Tracer | None, who: str, unit: Unit, reason: str) -> None:
    if tracer is not None:
        tracer.decline(who, unit.layers[0], reason, unit.weights)
