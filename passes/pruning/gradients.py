"""Gradients of a loss on the training data, with respect to weights in any stored form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from whet.errors import PassError
from whet.ir.graph import Graph, Value
from whet.ir.interpreter import Interpreter
from whet.passes.base import Context
from whet.passes.data import TrainingBatch, TrainingBatches
from whet.passes.pruning.masks import Weight
from whet.passes.recovery.objective import Loss as Loss
from whet.passes.recovery.objective import cross_entropy
from whet.passes.rewrite.rewriter import Rewriter
from whet.runtime.structure import unflatten


def labelled_cross_entropy(outputs: Any, labels: Any) -> torch.Tensor:
    """Cross entropy of the first output. Raises PassError where there are no labels."""
    if labels is None:
        raise PassError("train data has no labels: give (*inputs, labels) batches, or loss=")
    return cross_entropy(outputs, labels)


class WeightLoss:
    """The loss of a graph as a function of some of its weights.

    Args:
        graph: the model; it stays as it is.
        weights: which of its weights are variables. Whatever form each is stored in, the variable has its shape.
        context: `train` is the data, gone through again and again.
        loss: None: cross-entropy.
    """

    def __init__(self, graph: Graph, weights: Sequence[Weight], context: Context, loss: Loss | None) -> None:
        self.batches = TrainingBatches(context.train, graph)
        self.loss = loss or labelled_cross_entropy
        plain, self._names = _with_plain_weights(graph, weights)
        self._interpreter = Interpreter(plain)
        self._structure = graph.output_structure

    def __call__(self, tensors: Sequence[torch.Tensor], batch: TrainingBatch) -> torch.Tensor:
        """The loss of one batch with `tensors` as the weights, in their order.

        Raises PassError where it is not finite.
        """
        self._interpreter.overrides = dict(zip(self._names, tensors, strict=True))
        self._interpreter.reset()
        outputs: Any = self._interpreter(*batch.inputs)
        if self._structure is not None:
            outputs = unflatten(self._structure, outputs)
        elif len(outputs) == 1:
            (outputs,) = outputs
        value = self.loss(outputs, batch.labels)
        if not bool(torch.isfinite(value.detach()).all()):
            raise PassError(f"the loss on the train data is {value.detach().tolist()}: there is no gradient to rank by")
        return value

    def steps(self, count: int) -> Iterator[TrainingBatch]:
        """`count` batches, from the beginning again where the data ends."""
        done = 0
        while True:
            for batch in self.batches:
                if done == count:
                    return
                yield batch
                done += 1


def _with_plain_weights(graph: Graph, weights: Sequence[Weight]) -> tuple[Graph, list[str]]:
    """A copy in which each of the weights is one constant, and the names of these constants."""
    clone = graph.clone()
    values = {value.name: value for value in clone.values()}
    wanted = {values[weight.value.name]: weight for weight in weights}
    rewriter = Rewriter(clone)
    constants: dict[Value, Value] = {}
    for operation in list(clone.operations):
        for value in operation.operands:
            if value is None or value not in wanted or value in constants:
                continue
            rewriter.begin(operation)
            constants[value] = rewriter.constant(wanted[value].tensor)
    for value, constant in constants.items():
        clone.replace_value(value, constant)
    rewriter.commit()
    return clone, [constants[value].name for value in wanted]
