"""Block sparsity: whole vectors of weights go, so that a kernel skips them with its registers full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from whet.errors import PassError
from whet.ir.graph import Graph, Value
from whet.ir.target import Target
from whet.passes.base import Context, Pass, PassResult
from whet.passes.pruning.criteria import find_criterion
from whet.passes.pruning.criterion import Criterion, Question
from whet.passes.pruning.gradients import Loss
from whet.passes.pruning.masks import Weight, apply_masks, find_weights, from_matrix, pruned_elements, to_matrix
from whet.passes.pruning.ranking import kept_globally, kept_locally, require_ratio, require_scope


@dataclass(frozen=True)
class BlockSparsity(Pass):
    """Prune blocks of (outputs, inputs) of every weight by the mean score of their elements (Gray et al. 2017).

    For a convolution a block is taken at each position of the kernel. Where the sizes of a weight are no multiples
    of the block's, the last blocks are smaller.

    Args:
        ratio: share of the blocks to prune, in [0, 1), rounded to whole blocks.
        block: (outputs, inputs); None: as many outputs as a vector register of the target holds, and one input.
        criterion: what elements are worth; see UnstructuredPruning.
        scope: "local" ranks the blocks of each weight, "global" those of all.
        exclude: patterns (fnmatch) of module paths of layers that stay as they are.
        loss: (model's outputs, labels) -> scalar, for criteria that look at context.train; None: cross-entropy.

    Raises PassError for a ratio or block out of range, no block and no target, unknown criteria, patterns that fit
    nothing, and missing data.
    """

    ratio: float = 0.5
    block: tuple[int, int] | None = None
    criterion: str | Criterion = "magnitude"
    scope: str = "local"
    exclude: tuple[str, ...] = ()
    loss: Loss | None = None
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Changes: weights that got another mask, and elements pruned."""
        require_ratio(self.name, self.ratio)
        require_scope(self.name, self.scope)
        criterion = find_criterion(self.criterion)
        clone = graph.clone()
        weights = find_weights(clone, self.exclude, self.name, context.tracer)
        if not weights:
            return PassResult(graph, False)
        blocks = [self._block(weight, context.target) for weight in weights]
        scores = criterion.score(Question(clone, weights, context, self.loss))
        masked = apply_masks(clone, self._masks(weights, blocks, scores))
        if not masked:
            return PassResult(graph, False)
        pruned = pruned_elements(find_weights(clone, self.exclude)) - pruned_elements(weights)
        return PassResult(clone, True, {"weight masked": masked, "element pruned": pruned})

    def _block(self, weight: Weight, target: Target | None) -> tuple[int, int]:
        if self.block is not None:
            if len(self.block) != 2 or min(self.block) < 1:
                raise PassError(f"{self.name}'s block is (outputs, inputs), both positive; got {self.block}")
            return self.block
        if target is None:
            raise PassError(f"{self.name} shapes blocks for the target's vectors: give a target, or block=")
        return max(1, target.vector_bits // weight.value.type.dtype.bits), 1

    def _masks(
        self, weights: Sequence[Weight], blocks: Sequence[tuple[int, int]], scores: Sequence[torch.Tensor]
    ) -> dict[Value, torch.Tensor]:
        means, gone = [], []
        for weight, block, score in zip(weights, blocks, scores, strict=True):
            means.append(block_means(to_matrix(score, weight.dims), block))
            gone.append(block_means(to_matrix(weight.pruned.float(), weight.dims), block) == 1)
        if self.scope == "global":
            kept = kept_globally(means, gone, self.ratio)
        else:
            kept = [kept_locally(mean, pruned, self.ratio) for mean, pruned in zip(means, gone, strict=True)]
        return {w.value: _spread(mask, block, w) for w, block, mask in zip(weights, blocks, kept, strict=True)}


def block_means(matrix: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """[⌈outputs / b₀⌉, ⌈inputs / b₁⌉, positions]: means of the elements of each block of [outputs, inputs, positions].

    Blocks at the end may be smaller; their mean is over the elements that there are.
    """
    planes = matrix.movedim(2, 0)[:, None]
    means = F.avg_pool2d(planes, block, ceil_mode=True, count_include_pad=False)
    return means[:, 0].movedim(0, 2)


def _spread(blocks: torch.Tensor, block: tuple[int, int], weight: Weight) -> torch.Tensor:
    """A mask of elements out of one of blocks."""
    outputs, inputs, _ = to_matrix(weight.tensor, weight.dims).shape
    elements = blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return from_matrix(elements[:outputs, :inputs], weight.dims, weight.tensor.shape)
