"""Weight clipping: outliers of weights are cut off, so that quantization steps become finer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from whet.errors import PassError
from whet.ir.graph import Graph
from whet.passes.base import Context, Pass, PassResult
from whet.passes.pruning.criterion import require_positive
from whet.passes.pruning.masks import Weight, find_weights
from whet.passes.rewrite.rewriter import Rewriter
from whet.passes.weights import STORED_FORMS, key_of

_DEFAULT_SIGMA = 4.0


@dataclass(frozen=True)
class ClipWeights(Pass):
    """w -> min(max(w, -t), t) for the weights of linear, convolutional, recurrent and embedding layers.

    Args:
        threshold: t for all weights.
        sigma: t = sigma · (standard deviation of the weight's unpruned elements), for each weight (Migacz 2017;
            Zhao et al., OCS, ICML 2019, compare such rules). Without either, 4.
        exclude: patterns (fnmatch) of module paths of layers that stay as they are.

    Raises PassError for both or for what is not positive, and for patterns that fit nothing.
    """

    threshold: float | None = None
    sigma: float | None = None
    exclude: tuple[str, ...] = ()
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Changes: weights and elements that were clipped."""
        if self.threshold is not None and self.sigma is not None:
            raise PassError(f"{self.name} takes threshold or sigma, got threshold={self.threshold}, sigma={self.sigma}")
        for what, amount in {"threshold": self.threshold, "sigma": self.sigma}.items():
            if amount is not None:
                require_positive(self.name, **{what: amount})
        clone = graph.clone()
        rewriter = Rewriter(clone)
        weights = find_weights(clone, self.exclude, self.name, context.tracer)
        counts = [self._clip(rewriter, weight) for weight in weights]
        rewriter.commit()
        if not any(counts):
            return PassResult(graph, False)
        return PassResult(clone, True, {"weight clipped": sum(map(bool, counts)), "element clipped": sum(counts)})

    def _limit(self, weight: Weight) -> float:
        if self.threshold is not None:
            return self.threshold
        sigma = _DEFAULT_SIGMA if self.sigma is None else self.sigma
        return sigma * float(weight.tensor[~weight.pruned].double().std(correction=0))

    def _clip(self, rewriter: Rewriter, weight: Weight) -> int:
        """How many elements were beyond the limit, which holds for what is stored: of shared weights, the codebook."""
        limit = self._limit(weight)
        count = int((weight.tensor.abs() > limit).sum())
        stored = weight.value
        while stored.producer is not None and stored.producer.name in STORED_FORMS:
            stored = stored.producer.operand(0)
        tensor = stored.constant
        if not count or tensor is None or stored.producer is None:
            return 0
        rewriter.begin(stored.producer)
        clipped = rewriter.constant(torch.clamp(tensor, -limit, limit), key_of(stored))
        rewriter.replace(stored.producer, [clipped])
        return count
