"""What all passes that train have in common: their options, and the way from a graph to a trained graph."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from whet.errors import PassError
from whet.ir.graph import Graph
from whet.ir.printer import print_graph
from whet.passes.base import Context, Pass, PassResult
from whet.passes.randomness import seeded
from whet.passes.recovery.checkpoint import Checkpoint
from whet.passes.recovery.distributed import processes
from whet.passes.recovery.objective import Objective
from whet.passes.recovery.rule import TrainingRule
from whet.passes.recovery.schedule import OPTIMIZERS, SCHEDULES
from whet.passes.recovery.trainable import TrainableGraph
from whet.passes.recovery.trainer import Trainer

PRECISIONS: Final = ("f32", "bf16")

Augment = Callable[..., Tensor | Iterable[Tensor]]
"""(*inputs) -> inputs, changed at random: torch's, numpy's and Python's own generators are seeded for it."""


@dataclass(frozen=True, kw_only=True)
class TrainingPass(Pass):
    """Options of training. The weights of the best epoch by `context.evaluate` are kept, of the last one without it, or
    with `average` the mean of the last ones.

    Under `torchrun` every process computes its share of each batch, and all end with the same graph.

    Args:
        epochs: passes over `context.train`.
        learning_rate: at the beginning (one-cycle: at the top); None: 0.01 for sgd, 2e-4 for adamw.
        optimizer: "sgd" (Nesterov momentum) or "adamw" (Loshchilov & Hutter, ICLR 2019).
        weight_decay: of what has two dimensions or more.
        momentum: of sgd; adamw's first beta.
        schedule: "cosine", "constant" or "one-cycle".
        patience: stop after so many epochs without a better `context.evaluate`; None: train all epochs.
        average: the result has the mean of the weights after each of the last so many epochs (stochastic weight
            averaging, Izmailov et al., UAI 2018), which wants a learning rate that still moves them:
            schedule="constant". 0: no mean.
        augment: changes the inputs of every batch: (*inputs) -> inputs.
        checkpoint: a folder that takes the state after every epoch; the same training goes on from there, with the
            same result, bit for bit, as if it had not been interrupted.
        precision: "f32", or "bf16" for the products of sums only (autocast), about twice as fast where the processor
            has it.
        trainable: patterns (fnmatch) of constants' names, keys, or module paths: train those alone. Empty: the
            weights of layers.
        exclude: patterns of what stays as it is.
        freeze_batch_norm: normalize by the running statistics, and keep them.

    Raises PassError for options or data that it cannot work with, and a loss that is not finite.
    """

    epochs: int = 10
    learning_rate: float | None = None
    optimizer: str = "sgd"
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: str = "cosine"
    patience: int | None = None
    average: int = 0
    augment: Augment | None = None
    checkpoint: str | Path | None = None
    precision: str = "f32"
    trainable: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    freeze_batch_norm: bool = False
    must_change: ClassVar[bool] = True

    @abstractmethod
    def objective(self, model: TrainableGraph, context: Context) -> Objective:
        """What training makes small. Raises PassError."""

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Train; every constant that training has changed counts."""
        trained, changed = self.train(graph, context)
        return PassResult(trained, changed > 0, {"tensor trained": changed} if changed else {})

    @property
    def frozen(self) -> tuple[str, ...]:
        """Patterns of what is not trained."""
        return self.exclude

    def train(self, graph: Graph, context: Context, rule: TrainingRule | None = None) -> tuple[Graph, int]:
        """A new graph with trained constants, and how many of them changed.

        Args:
            graph: what to train.
            context: as for `run`.
            rule: what else changes with every step.
        """
        rule = rule or TrainingRule()
        self._check(context)
        group = processes()
        model = TrainableGraph(
            graph,
            trainable=self.trainable,
            exclude=self.frozen,
            freeze_batch_norm=self.freeze_batch_norm,
            processes=group,
            learned=rule.learned,
        )
        rule.begin(model)
        with seeded(context.seed, 0):
            objective = self.objective(model, context)
        trainer = Trainer(self, objective, rule, context, group, self._checkpoint(graph, context))
        return model.result(_interruptible(trainer))

    def _check(self, context: Context) -> None:
        for name, value, allowed in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in allowed:
                raise PassError(f"{self.name}: {name} is one of {', '.join(allowed)}, not {value!r}")
        least = {"epochs": 1, "learning_rate": 0.0, "weight_decay": 0.0, "momentum": 0.0, "patience": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not low <= value < float("inf"):
                raise PassError(f"{self.name}: {name} must be a number from {low} on, not {value!r}")
        if not self.momentum < 1:
            raise PassError(f"{self.name}: momentum must be below 1, not {self.momentum!r}")
        if not 0 <= self.average <= self.epochs:
            raise PassError(f"{self.name}: average is of 0 to epochs={self.epochs} epochs, not {self.average!r}")
        if self.average and self.patience is not None:
            raise PassError(
                f"{self.name}: a mean of the last epochs (average) has none with patience: give one of both"
            )
        if self.patience is not None and context.evaluate is None:
            raise PassError(
                f"{self.name}: patience={self.patience} needs a quality to watch: whet.optimize(..., evaluate=...)"
            )
        if self.precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            raise PassError(f'{self.name}: this processor does not compute in bf16: use precision="f32"')

    def _checkpoint(self, graph: Graph, context: Context) -> Checkpoint | None:
        if self.checkpoint is None:
            return None
        options = {item.name: described(getattr(self, item.name)) for item in dataclasses.fields(self)}
        del options["checkpoint"]
        identity = {"pass": self.name, **options, "seed": context.seed, "graph": described(graph)}
        return Checkpoint(Path(self.checkpoint), identity)


def _interruptible(trainer: Trainer) -> dict[str, Tensor]:
    try:
        return trainer.run()
    except KeyboardInterrupt as interruption:
        if trainer.checkpoint is not None:
            interruption.add_note(
                f"{trainer.state.epoch} epoch(s) are kept in {trainer.checkpoint.folder}: run the same again to go on"
            )
        raise


def described(value: Any) -> Any:
    """An option as JSON that is the same in the next run: graphs by their text, code by its name."""
    if isinstance(value, Graph):
        return hashlib.sha256(print_graph(value).encode()).hexdigest()
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [described(item) for item in value]
    if isinstance(value, nn.Module):
        return type(value).__qualname__
    return getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__qualname__
