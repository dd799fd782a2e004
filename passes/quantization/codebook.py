"""Shared weights: each weight one of few values, which are found by k-means."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

from torch import Tensor

from whet.errors import PassError
from whet.ir.builder import Builder
from whet.ir.graph import Graph, Operation, Value
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import DeadCodeElimination
from whet.passes.fold_batch_norm import FoldBatchNorm
from whet.passes.quantization.kmeans import INITS, kmeans, nearest
from whet.passes.quantization.weights_only import WEIGHTS, weight_slots
from whet.passes.selection import select_layers
from whet.passes.weights import evaluate_weight, key_of

MOST_BITS: Final = 8
KERNEL_BITS, MATRIX_BITS = 8, 5

Centres = Callable[[Operation, Tensor], Tensor]
"""(layer, the values of its weight that were not pruned) -> ascending entries of its codebook."""


@dataclass(frozen=True)
class QuantizeCodebook(Pass):
    """Each weight becomes the nearest of at most 2ᵇ values of its layer: w = codebook[i].

    The codebook minimizes Σ (w - codebook[i])² by k-means, weight by weight (Deep Compression: Han et al., ICLR 2016).
    In the graph: `lookup(codebook, indices)`; of a pruned weight only what was kept is clustered, and what was pruned
    stays 0: `masked(lookup(codebook, indices), mask)`. Codebooks are trained like
    weights (the gradient of an entry is that of the weights that share it: their sum, and their mean in FineTune and
    Distill, whose rates then fit). A compiled module takes the weights expanded; its bundle stores codebooks and
    indices. Batch norms are folded first.

    Args:
        bits: 1 to 8 of an index, or a table of patterns (fnmatch of module paths) to bits, where the first that fits
            counts and layers that none fits are left alone; None: 8 for convolutions, 5 for matrices.
        exclude: patterns of module paths that are left alone.
        init: where k-means starts: "linear", "density", "random" or "kmeans++" (see `kmeans.kmeans`).

    Raises PassError for impossible bits, an unknown `init`, patterns that fit nothing, and weights that are not
    finite.
    """

    bits: int | Mapping[str, int] | None = None
    exclude: tuple[str, ...] = ()
    init: str = "linear"
    must_change: ClassVar[bool] = True

    def __post_init__(self) -> None:
        given = self.bits.values() if isinstance(self.bits, Mapping) else [self.bits]
        for bits in given:
            if bits is not None and not 1 <= bits <= MOST_BITS:
                raise PassError(f"bits is {bits}; a codebook's indices have 1 to {MOST_BITS}")
        if self.init not in INITS:
            raise PassError(f"init is {self.init!r}; it must be one of {', '.join(INITS)}")

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Fold, cluster, rewrite. Each operation with shared weights counts as one change."""
        folded = FoldBatchNorm(expand=False).run(graph, context).graph.clone()
        layers = shareable_layers(folded, self.exclude)
        if isinstance(self.bits, Mapping):
            _require_used(self.bits, layers)
        layers = [layer for layer in layers if self._bits(layer) is not None]

        def centres(layer: Operation, kept: Tensor) -> Tensor:
            bits = self._bits(layer)
            assert bits is not None
            return kmeans(kept, 2**bits, self.init, context.seed)

        return share_weights(graph, folded, layers, centres, context)

    def _bits(self, layer: Operation) -> int | None:
        if isinstance(self.bits, Mapping):
            module = layer.location.module
            return next((bits for pattern, bits in self.bits.items() if fnmatch.fnmatch(module, pattern)), None)
        if self.bits is not None:
            return self.bits
        return KERNEL_BITS if layer.name.startswith("conv") else MATRIX_BITS


def _require_used(bits: Mapping[str, int], layers: Sequence[Operation]) -> None:
    paths = sorted({layer.location.module for layer in layers})
    unused = [pattern for pattern in bits if not fnmatch.filter(paths, pattern)]
    if unused:
        raise PassError(
            f"bits: no layer has a module path like {', '.join(unused)}; the paths are {', '.join(paths[:12])}"
        )


def shareable_layers(graph: Graph, exclude: Sequence[str]) -> list[Operation]:
    """The layers with a weight that is no lookup yet, but those to leave out. Raises PassError as `select_layers`."""
    return [layer for layer in select_layers(graph, WEIGHTS, exclude) if _slots(layer)]


def share_weights(
    graph: Graph, folded: Graph, layers: Sequence[Operation], centres: Centres, context: Context
) -> PassResult:
    """Rewrite the weights of `layers`, operations of the private clone `folded`, as lookups; `graph` is the original.

    A weight that several layers share is clustered once, for the first of them.
    """
    if not layers:
        return PassResult(graph, False)
    shared: dict[Value, Value] = {}
    for done, layer in enumerate(layers, start=1):
        context.progress("sharing weights", done, len(layers))
        builder = Builder(folded, before=layer)
        builder.location = layer.location
        for slot in _slots(layer):
            weight = layer.operand(slot)
            if weight not in shared:
                shared[weight] = _looked_up(builder, weight, partial(centres, layer))
            layer.set_operand(slot, shared[weight])
    result = DeadCodeElimination().run(folded, context).graph
    counts = Counter(layer.name for layer in layers)
    return PassResult(result, True, {f"{name} shared": count for name, count in counts.items()})


def _slots(layer: Operation) -> list[int]:
    """The weights of a layer that are no lookups yet."""
    return [slot for slot in weight_slots(layer) if not _is_shared(layer.operand(slot))]


def _is_shared(weight: Value) -> bool:
    operation = _unmasked(weight).producer
    return operation is not None and operation.name == "lookup"


def _unmasked(weight: Value) -> Value:
    operation = weight.producer
    return operation.operand(0) if operation is not None and operation.name == "masked" else weight


def _looked_up(builder: Builder, weight: Value, centres: Callable[[Tensor], Tensor]) -> Value:
    values = evaluate_weight(weight)
    assert values is not None and weight.producer is not None
    mask = weight.producer.operand(1) if weight.producer.name == "masked" else None
    kept = None if mask is None else evaluate_weight(mask)
    chosen = values if kept is None else values[kept]
    # a weight that was pruned as a whole still has a codebook, of the one entry 0
    codebook = centres(chosen) if chosen.numel() else values.new_zeros(1)
    stored = codebook.to(values.dtype)
    indices = nearest(values, stored)
    if kept is not None:
        indices = indices.masked_fill(kept.logical_not(), 0)
    looked_up: Value = builder.lookup(
        builder.constant(stored, _key(weight, "codebook")), builder.constant(indices, _key(weight, "indices"))
    )
    if mask is None:
        return looked_up
    masked: Value = builder.masked(looked_up, mask)
    return masked


def _key(weight: Value, part: str) -> str:
    return f"{key_of(weight)}.{part}" if key_of(weight) else ""
