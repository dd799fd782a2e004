"""What training makes small: a loss of a batch, over a graph that is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whet.errors import PassError
from whet.passes.data import TrainingBatch
from whet.passes.recovery.trainable import TrainableGraph

Loss = Callable[[Any, Any], Tensor]
"""(outputs in the model's structure, labels) -> a scalar, the mean over the batch."""


class Objective(nn.Module, ABC):
    """A loss as a module: its parameters are the graph's, and what else the loss learns."""

    def __init__(self, model: TrainableGraph) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, batch: TrainingBatch) -> Tensor:
        """The loss of a batch, a scalar: the mean over its rows. Raises PassError."""


class LabelledLoss(Objective):
    """loss(outputs, labels)."""

    def __init__(self, model: TrainableGraph, loss: Loss | None) -> None:
        super().__init__(model)
        self.loss = loss or cross_entropy

    def forward(self, batch: TrainingBatch) -> Tensor:
        """Raises PassError for a batch without labels, or a loss that is no scalar."""
        outputs = self.model.structured(self.model(*batch.inputs))
        return labelled_loss(self.loss, outputs, batch.labels)


def labelled_loss(loss: Loss, outputs: Any, labels: Any) -> Tensor:
    """The loss, checked. Raises PassError for missing labels, or for what is no scalar."""
    if labels is None:
        raise PassError(
            "train data has no labels: give batches (*inputs, labels), or distill without them: Distill(alpha=0)"
        )
    result = loss(outputs, labels)
    if not isinstance(result, Tensor) or result.dim() != 0:
        found = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise PassError(f"loss must be a scalar tensor, the mean over the batch; it gave {found}")
    return result


def cross_entropy(outputs: Any, labels: Any) -> Tensor:
    """Cross entropy of the first output, scores [N, classes, ...], with class indices or probabilities."""
    scores = first_tensor(outputs)
    try:
        return F.cross_entropy(scores.float(), labels)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        shape = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise PassError(
            f"no cross entropy of outputs {list(scores.shape)} and labels {shape} ({error}): pass "
            "loss=callable(outputs, labels)"
        ) from error


def first_tensor(outputs: Any) -> Tensor:
    """The first tensor of a model's result. Raises PassError where there is none."""
    for tensor in tensors_of(outputs):
        return tensor
    raise PassError(f"a model's result holds no tensor: {type(outputs).__name__}")


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors of a model's result, in order, out of tuples, lists, dicts and records."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if outputs is None or isinstance(outputs, str | int | float):
        return []
    items = list(outputs.values()) if hasattr(outputs, "values") else list(outputs)
    return [tensor for item in items for tensor in tensors_of(item)]


def backward(loss: Tensor) -> None:
    """Gradients of a loss. Raises PassError where it depends on nothing that is trained."""
    if not loss.requires_grad:
        raise PassError("the loss does not depend on anything that is trained")
    torch.autograd.backward(loss)
