"""The training loop: epochs over `context.train`, the best weights by `context.evaluate`, a checkpoint after each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from whet.errors import PassError
from whet.passes.base import Context
from whet.passes.data import TrainingBatch, TrainingBatches
from whet.passes.evaluation import GraphModel, score
from whet.passes.randomness import seeded
from whet.passes.recovery.checkpoint import Checkpoint
from whet.passes.recovery.distributed import Processes
from whet.passes.recovery.objective import Objective, backward
from whet.passes.recovery.rule import TrainingRule
from whet.passes.recovery.schedule import SCHEDULES, make_optimizer, set_rate

if TYPE_CHECKING:
    from whet.passes.recovery.training_pass import TrainingPass

_STATISTICS_BATCHES: Final = 100
"""Of which the statistics of batch norms are made: each counts a tenth of what was before it, so more change little."""


@dataclass
class State:
    """How far a training is."""

    epoch: int = 0
    best: float | None = None
    best_epoch: int = 0
    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def note(self) -> dict[str, Any]:
        """As JSON."""
        return dict(vars(self))


class Trainer:
    """Trains an objective as a pass's options say.

    Args:
        options: epochs, learning rate, and so on.
        objective: what to make small.
        rule: what else changes with every step.
        context: gives data, quality, progress and seed.
        processes: which train together.
        checkpoint: where to go on from, and to note every epoch; None: nowhere.
    """

    def __init__(
        self,
        options: TrainingPass,
        objective: Objective,
        rule: TrainingRule,
        context: Context,
        processes: Processes,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.options = options
        self.objective = objective
        self.rule = rule
        self.context = context
        self.processes = processes
        self.checkpoint = checkpoint
        self.state = State()
        self.best: dict[str, Tensor] = {}
        self.mean: dict[str, Tensor] = {}
        self.batches = TrainingBatches(context.train, objective.model.graph)
        self.parameters = dict(objective.named_parameters())
        self.optimizer = make_optimizer(
            options.optimizer,
            self.parameters.values(),
            options.learning_rate,
            options.momentum,
            options.weight_decay,
        )

    def run(self) -> dict[str, Tensor]:
        """Train to the end; the tensors to use in place of constants, by name.

        Raises PassError for a loss that is not finite, and what the objective raises.
        """
        self._resume()
        if not self._finished():
            with seeded(self.context.seed, 0):
                steps = _count(self.context, self.batches)
            parallel = self.processes.parallel(self.objective)
            while not self._finished():
                self._run_epoch(parallel, steps)
        if self.options.average:
            self._adopt_mean()
            return self._overrides()
        return self.best or self._overrides()

    def _finished(self) -> bool:
        stale = self.state.epoch - self.state.best_epoch
        stopped = self.options.patience is not None and stale >= self.options.patience
        return self.state.epoch >= self.options.epochs or stopped

    def _run_epoch(self, parallel: torch.nn.Module, steps: int) -> None:
        state = self.state
        with seeded(self.context.seed, 1 + state.epoch):
            losses = []
            for step, batch in enumerate(self.batches):
                progress = min((state.epoch + step / steps) / self.options.epochs, 1.0)
                set_rate(self.optimizer, SCHEDULES[self.options.schedule](progress))
                losses.append(self._step(parallel, self._augmented(batch), step))
                self._show(losses[-1], state.epoch * steps + min(step + 1, steps), steps * self.options.epochs)
        state.epoch += 1
        state.losses.append(sum(losses) / len(losses))
        self._average()
        self._evaluate()
        if self.checkpoint is not None and self.processes.first:
            self.checkpoint.save(state.note(), self._tensors())

    def _step(self, parallel: torch.nn.Module, batch: TrainingBatch, step: int) -> float:
        mine, part = self.processes.share(batch)
        with self._precision():
            loss = parallel(mine)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise PassError(
                f"{self.options.name}: the loss is {value} at step {step} of epoch {self.state.epoch + 1}: try a lower "
                f"learning_rate (it is {self.optimizer.param_groups[0]['lr']:g})"
                + (', or precision="f32"' if self.options.precision != "f32" else "")
            )
        self.optimizer.zero_grad(set_to_none=True)
        # gradients are averaged over processes, so that each must count as much as its rows
        backward(loss * (part * self.processes.count) if self.processes.count > 1 else loss)
        self.optimizer.step()
        with torch.no_grad():
            self.rule.after_step(self.objective.model)
        return value

    def _precision(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.options.precision == "bf16")

    def _average(self) -> None:
        """Take the weights of this epoch into their mean, where it is one of the last."""
        count = self.state.epoch - (self.options.epochs - self.options.average)
        if count < 1:
            return
        for name, parameter in self.parameters.items():
            mean = self.mean.setdefault(name, parameter.detach().clone())
            mean.lerp_(parameter.detach(), 1 / count)

    def _adopt_mean(self) -> None:
        """Make the mean the weights; the statistics of batch norms were estimated with others, so they are anew."""
        with torch.no_grad(), seeded(self.context.seed, 1 + self.state.epoch):
            for name, parameter in self.parameters.items():
                parameter.copy_(self.mean[name])
            if not self.objective.model.statistics:
                return
            for batch in itertools.islice(self.batches, _STATISTICS_BATCHES):
                mine, _ = self.processes.share(self._augmented(batch))
                with self._precision():
                    self.objective.model(*mine.inputs)

    def _augmented(self, batch: TrainingBatch) -> TrainingBatch:
        if self.options.augment is None:
            return batch
        changed = self.options.augment(*batch.inputs)
        return TrainingBatch((changed,) if isinstance(changed, Tensor) else tuple(changed), batch.labels)

    def _evaluate(self) -> None:
        if self.context.evaluate is None:
            self.state.best_epoch = self.state.epoch
            return
        overrides = self._overrides()
        quality = 0.0
        if self.processes.first:
            with torch.no_grad():
                quality = score(self.context, GraphModel(self.objective.model.graph, overrides))
        quality = self.processes.agree(quality)
        self.state.scores.append(quality)
        if self.state.best is None or quality > self.state.best:
            self.state.best, self.state.best_epoch = quality, self.state.epoch
            self.best = {name: tensor.detach().clone() for name, tensor in overrides.items()}

    def _show(self, loss: float, done: int, total: int) -> None:
        if not self.processes.first:
            return
        metric = f" metric {self.state.scores[-1]:.4g}" if self.state.scores else ""
        epoch = f"{self.state.epoch + 1}/{self.options.epochs}"
        self.context.progress(f"{self.options.name} {epoch} loss {loss:.4g}{metric}", done, total)

    def _overrides(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.objective.model.overrides().items()}

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that changes from step to step, by name."""
        tensors: dict[str, Tensor] = {f"parameter/{name}": item for name, item in self.parameters.items()}
        tensors |= {f"statistic/{name}": item for name, item in self.objective.model.statistics.items()}
        tensors |= {f"best/{name}": item for name, item in self.best.items()}
        tensors |= {f"mean/{name}": item for name, item in self.mean.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state[parameter]
            tensors |= {f"optimizer/{name}/{key}": item for key, item in moments.items() if isinstance(item, Tensor)}
        return tensors

    def _resume(self) -> None:
        found = self.checkpoint.load() if self.checkpoint is not None and self.processes.first else None
        note, tensors = self.processes.broadcast(*(found or (None, {})))
        if note is None:
            return
        self.state = State(**note)
        self._restore(tensors)

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
            for name, statistic in self.objective.model.statistics.items():
                statistic.copy_(tensors[f"statistic/{name}"])
        for key, tensor in tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "best":
                self.best[rest] = tensor
            elif kind == "mean":
                self.mean[rest] = _like(self.parameters[rest], tensor)
            elif kind == "optimizer":
                name, _, moment = rest.rpartition("/")
                self.optimizer.state[self.parameters[name]][moment] = _like(self.parameters[name], tensor)


def _like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A moment in the memory format of its parameter; counters as they are."""
    return tensor if tensor.shape != parameter.shape else torch.empty_like(parameter).copy_(tensor)


def _count(context: Context, batches: TrainingBatches) -> int:
    """Batches of an epoch. Raises PassError where there is none."""
    if isinstance(context.train, Sized) and len(context.train):
        return len(context.train)
    return sum(1 for _ in batches)
