"""What changes with every step of training besides what gradients say."""

from __future__ import annotations

from whet.passes.recovery.trainable import TrainableGraph


class TrainingRule:
    """Does nothing; subclasses say what they do."""

    learned: tuple[str, ...] = ()
    """Names of constants to train besides the weights of layers."""

    def begin(self, model: TrainableGraph) -> None:
        """Called once, before training: may add to `model.statistics`."""

    def after_step(self, model: TrainableGraph) -> None:
        """Called after every step, without gradients."""
