"""Removing whole residual blocks: the branch goes, the skip connection stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch

from whet.errors import PassError
from whet.ir.graph import Graph, Operation, Value
from whet.ir.interpreter import Interpreter
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import remove_dead_code
from whet.passes.data import Batches
from whet.passes.pruning.masks import WEIGHT_SLOTS
from whet.passes.pruning.ranking import require_ratio
from whet.passes.selection import excluded, select_layers
from whet.passes.weights import evaluate_weight

_DEFAULT_RATIO: Final = 0.25


@dataclass(frozen=True, eq=False)
class Block:
    """result = skip + branch, where the branch is computed from the skip, and nothing else reads what it computes.

    Attributes:
        sum: the addition.
        skip: what stays.
        branch: what goes.
        layers: operations with weights that only the branch needs.
    """

    sum: Operation
    skip: Value
    branch: Value
    layers: tuple[Operation, ...]

    def has_layer_like(self, patterns: Sequence[str]) -> bool:
        """Whether the module path of one of the layers fits one of the patterns."""
        return any(excluded(layer, patterns) for layer in self.layers)


@dataclass(frozen=True)
class BlockPruning(Pass):
    """x + f(x) -> x, for the blocks whose removal changes least.

    Blocks are additions of a value and what is computed from it, of one type: the blocks of residual networks that
    keep the shape, the attention and the feed-forward part of a transformer's layer.

    Args:
        ratio: share of the blocks that go, in [0, 1), rounded down but at least one; None, without `count`: 0.25.
        count: how many go, in place of a ratio.
        criterion: "similarity": 1 - cos(x, x + f(x)) (Men et al., ShortGPT, 2024); "contribution": ‖f(x)‖ / ‖x + f(x)‖,
            both averaged over the batches of context.calibration; "l1": mean |w| of the branch's weights.
        exclude: patterns of module paths (fnmatch); a block with such a layer stays.

    Raises PassError for numbers out of their range, a criterion that there is not, patterns that fit nothing, and
    missing data.
    """

    ratio: float | None = None
    count: int | None = None
    criterion: str = "similarity"
    exclude: tuple[str, ...] = ()
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Each block that is removed counts as one change."""
        self._check()
        select_layers(graph, WEIGHT_SLOTS, self.exclude)
        blocks = [
            block for block in find_blocks(graph) if not any(excluded(item, self.exclude) for item in block.layers)
        ]
        wanted = self._wanted(len(blocks))
        if not wanted:
            return PassResult(graph, False)
        scores = _CRITERIA[self.criterion](graph, blocks, context)
        ranking = sorted(range(len(blocks)), key=scores.__getitem__)
        clone = graph.clone()
        removed = _bypass(clone, [blocks[place].sum.result.name for place in ranking], wanted)
        return PassResult(clone, True, {"block removed": removed})

    def _check(self) -> None:
        if self.ratio is not None and self.count is not None:
            raise PassError("BlockPruning takes a ratio or a count, not both")
        require_ratio(self.name, _DEFAULT_RATIO if self.ratio is None else self.ratio)
        if self.count is not None and self.count < 1:
            raise PassError(f"BlockPruning's count must be at least 1, got {self.count}")
        if self.criterion not in _CRITERIA:
            raise PassError(f"criterion is one of {sorted(_CRITERIA)}; got {self.criterion!r}")

    def _wanted(self, blocks: int) -> int:
        """Raises PassError where there are not that many."""
        if self.count is None:
            ratio = _DEFAULT_RATIO if self.ratio is None else self.ratio
            return min(max(int(ratio * blocks), 1), blocks) if ratio else 0
        if self.count > blocks:
            raise PassError(f"BlockPruning shall remove {self.count} blocks, the graph has {blocks} that can go")
        return self.count


def find_blocks(graph: Graph) -> list[Block]:
    """The residual blocks of a graph that can be bypassed, in order."""
    places = {operation: place for place, operation in enumerate(graph.operations)}
    returned = set(graph.returns)
    found = []
    for operation in graph.operations:
        if operation.name != "add":
            continue
        for skip, branch in (
            (operation.operand(0), operation.operand(1)),
            (operation.operand(1), operation.operand(0)),
        ):
            if not _same_types(skip, branch, operation.result) or not _computed_from(branch, skip, places):
                continue
            layers = _layers(_exclusive(branch, operation, returned | {skip}))
            if layers:
                found.append(Block(operation, skip, branch, layers))
    return found


def _same_types(*values: Value) -> bool:
    return all(value.type.same_as(values[0].type) for value in values)


def _computed_from(value: Value, source: Value, places: dict[Operation, int]) -> bool:
    first = -1 if source.producer is None else places[source.producer]
    waiting, seen = [value], {value}
    while waiting:
        item = waiting.pop()
        if item is source:
            return True
        if item.producer is None or places[item.producer] <= first:
            continue
        fresh = [operand for operand in item.producer.operands if operand is not None and operand not in seen]
        seen.update(fresh)
        waiting += fresh
    return False


def _exclusive(value: Value, user: Operation, needed: set[Value]) -> set[Operation]:
    """Operations that nobody needs once `user` does not read `value`, but those that make `needed`."""
    dead = {user}
    waiting = [value]
    while waiting:
        producer = waiting.pop().producer
        if producer is None or producer in dead:
            continue
        if any(result in needed or set(result.users) - dead for result in producer.results):
            continue
        dead.add(producer)
        waiting += [operand for operand in producer.operands if operand is not None]
    return dead - {user}


def _layers(operations: set[Operation]) -> tuple[Operation, ...]:
    return tuple(operation for operation in operations if operation.name in WEIGHT_SLOTS and _weights(operation))


def _weights(layer: Operation) -> list[torch.Tensor]:
    operands = [layer.operands[slot] for slot in WEIGHT_SLOTS[layer.name] if slot < len(layer.operands)]
    tensors = [evaluate_weight(value) for value in operands if value is not None]
    return [tensor for tensor in tensors if tensor is not None and tensor.is_floating_point()]


def _bypass(graph: Graph, sums: Sequence[str], wanted: int) -> int:
    """Bypass the first `wanted` of these blocks, named by their sums, that are still there; how many that were."""
    removed = 0
    for name in sums:
        if removed == wanted:
            break
        block = next((block for block in find_blocks(graph) if block.sum.result.name == name), None)
        if block is None:
            continue
        graph.replace_value(block.sum.result, block.skip)
        remove_dead_code(graph)
        removed += 1
    return removed


def _similarity(graph: Graph, blocks: Sequence[Block], context: Context) -> list[float]:
    def distance(skip: torch.Tensor, branch: torch.Tensor) -> float:
        total = skip + branch
        return 1 - float(torch.nn.functional.cosine_similarity(skip.flatten(), total.flatten(), dim=0))

    return _observed(graph, blocks, context, distance)


def _contribution(graph: Graph, blocks: Sequence[Block], context: Context) -> list[float]:
    def share(skip: torch.Tensor, branch: torch.Tensor) -> float:
        return float(branch.norm() / (skip + branch).norm().clamp_min(torch.finfo(torch.float64).tiny))

    return _observed(graph, blocks, context, share)


def _observed(
    graph: Graph, blocks: Sequence[Block], context: Context, measure: Callable[[torch.Tensor, torch.Tensor], float]
) -> list[float]:
    """Sum over the batches of a measure of (x, f(x))."""
    totals = dict.fromkeys((block.sum for block in blocks), 0.0)
    skips = {block.sum: block.skip for block in blocks}
    wanted = set(skips.values())
    seen: dict[Value, torch.Tensor] = {}

    def hook(operation: Operation, results: tuple[torch.Tensor, ...]) -> None:
        if operation in totals:
            skip = seen[skips[operation]]
            totals[operation] += measure(skip, results[0].double() - skip)
        seen.update(
            (value, tensor.double())
            for value, tensor in zip(operation.results, results, strict=True)
            if value in wanted
        )

    interpreter = Interpreter(graph, hook=hook)
    with torch.no_grad():
        for batch in Batches(context.calibration, graph):
            seen.clear()
            seen.update((value, tensor.double()) for value, tensor in zip(graph.inputs, batch, strict=True))
            interpreter(*batch)
    return [totals[block.sum] for block in blocks]


def _mean_weight(graph: Graph, blocks: Sequence[Block], context: Context) -> list[float]:
    flat = [
        [weight.abs().double().flatten() for layer in block.layers for weight in _weights(layer)] for block in blocks
    ]
    return [float(torch.cat(weights).mean()) for weights in flat]


_CRITERIA: Final[dict[str, Callable[[Graph, Sequence[Block], Context], list[float]]]] = {
    "contribution": _contribution,
    "l1": _mean_weight,
    "similarity": _similarity,
}
