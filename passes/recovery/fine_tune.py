"""Training the weights of a graph on labelled data."""

from __future__ import annotations

from dataclasses import dataclass

from whet.passes.base import Context
from whet.passes.recovery.objective import LabelledLoss, Loss, Objective
from whet.passes.recovery.trainable import TrainableGraph
from whet.passes.recovery.training_pass import TrainingPass


@dataclass(frozen=True, kw_only=True)
class FineTune(TrainingPass):
    """Train the weights on `context.train`: batches (*inputs, labels).

    What compression has done to the weights stays: pruned ones (`masked`) get no gradient, shared ones (`lookup`) move
    together (Han et al., Deep Compression, ICLR 2016).

    Args:
        loss: (outputs in the model's structure, labels) -> a scalar, the mean over the batch; None: the cross entropy
            of the first output, [N, classes, ...].
    """

    loss: Loss | None = None

    def objective(self, model: TrainableGraph, context: Context) -> Objective:
        """The loss on the labels."""
        return LabelledLoss(model, self.loss)
