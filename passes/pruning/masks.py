"""The weights that can be pruned element by element, and the masks that do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from whet.ir.graph import Graph, Operation, Value
from whet.passes.rewrite.rewriter import Rewriter
from whet.passes.rewrite.tracer import Tracer
from whet.passes.selection import excluded, select_layers
from whet.passes.weights import evaluate_weight, is_quantized, key_of

WEIGHT_SLOTS: Final[Mapping[str, Mapping[int, tuple[int, int]]]] = {
    "linear": {1: (0, 1)},
    "conv": {1: (0, 1)},
    "conv_transpose": {1: (1, 0)},
    "take": {0: (1, 0)},
    "matmul": {1: (1, 0)},
    "lstm": {3: (0, 1), 4: (0, 1), 7: (0, 1)},
    "gru": {2: (0, 1), 3: (0, 1)},
    "rnn": {2: (0, 1), 3: (0, 1)},
}
"""Operation -> operand that is a weight -> its (output, input) dimensions. A take of rows is an embedding, that is a
matrix product with one-hot rows.
"""

_OFTEN_COMPUTED: Final = frozenset({"take", "matmul"})


@dataclass(frozen=True)
class Weight:
    """A weight as layers see it.

    Attributes:
        value: what the layers read: a constant, or a stored form of one.
        layers: who reads it, with the operand's index; more than one where weights are tied.
        tensor: its elements, zeros where it is masked.
        kept: the mask that it has already, True where an element counts; None: no mask.
    """

    value: Value
    layers: tuple[tuple[Operation, int], ...]
    tensor: torch.Tensor
    kept: torch.Tensor | None

    @property
    def module(self) -> str:
        """The module path of the first layer."""
        return self.layers[0][0].location.module

    @property
    def dims(self) -> tuple[int, int]:
        """(output, input) dimensions of the tensor, as the first layer sees them."""
        layer, slot = self.layers[0]
        return WEIGHT_SLOTS[layer.name][slot]

    @property
    def pruned(self) -> torch.Tensor:
        """True where an element was pruned before."""
        return torch.zeros_like(self.tensor, dtype=torch.bool) if self.kept is None else self.kept.logical_not()


def find_weights(
    graph: Graph, exclude: Sequence[str] = (), who: str = "pruning", tracer: Tracer | None = None
) -> list[Weight]:
    """The weights of all layers that `exclude` does not name, in order; one that an excluded layer shares is left out.

    Why a layer has none is told to the tracer under the name `who`. Raises PassError for patterns that fit nothing.
    """
    layers = select_layers(graph, WEIGHT_SLOTS, exclude)
    uses: dict[Value, list[tuple[Operation, int]]] = {}
    for layer in layers:
        for slot in WEIGHT_SLOTS[layer.name]:
            value = layer.operands[slot] if slot < len(layer.operands) else None
            if value is not None:
                uses.setdefault(value, []).append((layer, slot))
    found = []
    for value, users in uses.items():
        reason = _reason_to_leave(value, exclude)
        tensor = None if reason else evaluate_weight(value)
        layer = users[0][0]
        if tensor is not None and tensor.is_floating_point() and tensor.dim() >= 2:
            found.append(Weight(value, tuple(users), tensor, mask_of(value)))
        elif tracer is not None and layer.name not in _OFTEN_COMPUTED:
            tracer.decline(who, layer, reason or "its weight is no floating-point constant", (value,))
    return found


def _reason_to_leave(value: Value, exclude: Sequence[str]) -> str:
    if any(excluded(user, exclude) for user in value.users):
        return "its weight is tied to that of an excluded layer"
    if is_quantized(value):
        return "its weight is quantized: prune first, then quantize"
    if any(user.name == "take" and user.attributes["axis"] != 0 for user in value.users):
        return "takes columns, not rows"
    return ""


def pruned_elements(weights: Sequence[Weight]) -> int:
    """How many elements the masks of the weights leave out."""
    return sum(int(weight.pruned.sum()) for weight in weights)


def mask_of(value: Value) -> torch.Tensor | None:
    """The mask of a masked constant, True where an element is kept; None for all else."""
    if value.producer is None or value.producer.name != "masked":
        return None
    return value.producer.operand(1).constant


def to_matrix(tensor: torch.Tensor, dims: tuple[int, int]) -> torch.Tensor:
    """[outputs, inputs, kernel positions] of a weight whose (output, input) dimensions are `dims`."""
    ordered = tensor if dims == (0, 1) else tensor.transpose(0, 1)
    return ordered.reshape(*ordered.shape[:2], -1)


def from_matrix(matrix: torch.Tensor, dims: tuple[int, int], shape: torch.Size) -> torch.Tensor:
    """The inverse of `to_matrix` for a weight of `shape`."""
    if dims == (0, 1):
        return matrix.reshape(shape)
    return matrix.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1).contiguous()


def apply_masks(graph: Graph, masks: Mapping[Value, torch.Tensor]) -> int:
    """Put `masked(weight, mask)` in the place of each weight, in `graph` itself; how many changed.

    A weight that has a mask keeps what that has pruned: the new mask is old & new. One whose mask says nothing new
    stays as it is.
    """
    rewriter = Rewriter(graph)
    waiting = dict(masks)
    changed = 0
    for operation in list(graph.operations):
        for value in [item for item in operation.operands if item is not None and item in waiting]:
            changed += _apply_mask(rewriter, operation, value, waiting.pop(value))
    rewriter.commit()
    return changed


def _apply_mask(rewriter: Rewriter, user: Operation, value: Value, mask: torch.Tensor) -> bool:
    old = mask_of(value)
    stored = value
    if old is not None:
        mask = old & mask
        if torch.equal(mask, old):
            return False
        assert value.producer is not None
        stored = value.producer.operand(0)
    rewriter.begin(user)
    key = key_of(value)
    constant = rewriter.constant(mask, f"{key}.mask" if key else "")
    pruned = rewriter.masked(stored, constant, name_hint=f"{stored.name}.masked")
    rewriter.graph.replace_value(value, pruned)
    if stored is value:
        # its own operand was a use of the weight like any other
        assert pruned.producer is not None
        pruned.producer.set_operand(0, value)
    else:
        assert value.producer is not None
        rewriter.returned = set(rewriter.graph.returns)
        rewriter.erase_unused([value.producer])
        pruned.name, value.name = value.name, pruned.name
    return True
