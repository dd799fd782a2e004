"""Knowledge distillation: training a graph to answer as its teacher does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whet.errors import PassError
from whet.ir.graph import Graph
from whet.passes.base import Context
from whet.passes.data import TrainingBatch, TrainingBatches
from whet.passes.recovery.channel_map import channel_map
from whet.passes.recovery.objective import Loss, Objective, cross_entropy, labelled_loss
from whet.passes.recovery.teacher import CallableTeacher, GraphTeacher, Lesson, Silent, Teacher, Watched, feature_value
from whet.passes.recovery.trainable import TrainableGraph
from whet.passes.recovery.training_pass import TrainingPass
from whet.passes.recovery.widen import narrowed


def _kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(t / T) ‖ softmax(s / T)) over dimension 1, the mean over all else."""
    wanted = F.log_softmax(teacher.float() / temperature, 1)
    found = F.log_softmax(student.float() / temperature, 1)
    divergence = (wanted.exp() * (wanted - found)).sum(1).mean()
    return divergence * temperature**2


def _mse(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return F.mse_loss(student.float(), teacher.float())


def _cosine(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """1 - cos of the angle between vectors along the last dimension."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), -1)).mean()


LOSSES: Final[Mapping[str, Callable[[Tensor, Tensor, float], Tensor]]] = {"kl": _kl, "mse": _mse, "cosine": _cosine}
"""Name -> (student's output, teacher's, temperature) -> a scalar."""


@dataclass(frozen=True, kw_only=True)
class Distill(TrainingPass):
    """Train towards a teacher's answers (Hinton, Vinyals & Dean 2015):

        L = α · hard_loss(s, labels) + (1 - α) · T² · KL(softmax(t / T) ‖ softmax(s / T)) + Σ_f weight_f · ‖s_f - t_f‖²

    with s and t what student and teacher give, [N, classes, ...]. The student is the graph; with another model as the
    student, optimize that, and give the teacher. The last term is the mean squared difference of features (FitNets,
    Romero et al., ICLR 2015); where a feature has fewer channels in the student, as after pruning, a linear map of the
    student's channels is learned along with it.

    Args:
        teacher: None: the graph before the first pass. Else a Graph, an nn.Module (in evaluation mode while it is
            asked), or any callable that takes the model's inputs.
        temperature: T; only "kl" knows it.
        alpha: weight of the labels. With 0 batches need none.
        features: module path, or name of a value -> weight. A module stands for what its last operation gives.
        loss: "kl" of scores; "mse" or "cosine" (along the last dimension) of embeddings and other numbers.
        outputs: indices of the outputs that are compared; losses of several are averaged.
        hard_loss: (outputs in the model's structure, labels) -> a scalar; None: cross entropy of the first output.
    """

    teacher: Any = None
    temperature: float = 4.0
    alpha: float = 0.1
    features: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    loss: str = "kl"
    outputs: tuple[int, ...] = (0,)
    hard_loss: Loss | None = None

    def objective(self, model: TrainableGraph, context: Context) -> Objective:
        """The loss against the teacher. Raises PassError."""
        self._check_options(model.graph)
        teacher = self._teacher(model.graph, context)
        example = next(iter(TrainingBatches(context.train, model.graph))).inputs if self.features else None
        return DistillationLoss(self, model, teacher, example)

    def _check_options(self, graph: Graph) -> None:
        if self.loss not in LOSSES:
            raise PassError(f"Distill: loss is one of {', '.join(LOSSES)}, not {self.loss!r}")
        if not 0 <= self.alpha <= 1:
            raise PassError(f"Distill: alpha must be from 0 to 1, not {self.alpha!r}")
        if not 0 < self.temperature < float("inf"):
            raise PassError(f"Distill: temperature must be positive, not {self.temperature!r}")
        if not isinstance(self.features, Mapping):
            raise PassError(f"Distill: features is {{module path: weight}}, not {self.features!r}")
        if not self.outputs or not all(0 <= index < len(graph.outputs) for index in self.outputs):
            raise PassError(f"Distill: outputs is {self.outputs}; the graph has {len(graph.outputs)} output(s)")

    def _teacher(self, graph: Graph, context: Context) -> Teacher:
        teacher = context.original if self.teacher is None else self.teacher
        features = tuple(self.features)
        if teacher is None and self.alpha == 1 and not features:
            return Silent()
        if isinstance(teacher, Graph):
            return GraphTeacher(teacher, features)
        if not callable(teacher):
            raise PassError(f"Distill: teacher must be a Graph, a module or a callable, not {teacher!r}")
        return CallableTeacher(teacher, features, graph.input_structure)


class DistillationLoss(Objective):
    """The loss of `Distill`; its own parameters are the maps of features.

    Args:
        options: of the loss.
        model: the student.
        teacher: gives the features of `options` in their order.
        example: inputs to see the shapes of the teacher's features on.

    Raises PassError for a feature whose shapes differ in more than the number of channels.
    """

    def __init__(
        self, options: Distill, model: TrainableGraph, teacher: Teacher, example: Sequence[Tensor] | None
    ) -> None:
        super().__init__(model)
        self.options = options
        # a tuple, lest a teacher that is a module become a part of this one
        self._teacher = (teacher,)
        self._compare = LOSSES[options.loss]
        self._watched = Watched(model.graph, tuple(options.features))
        model.interpreter.hook = self._watched.hook
        shapes = [list(tensor.shape) for tensor in teacher(example).features] if example is not None else []
        self._types = [feature_value(model.original, value.name).type for value in self._watched.values]
        named = zip(options.features, self._types, shapes, strict=True)
        self.maps = nn.ModuleList(channel_map(name, mine, theirs) for name, mine, theirs in named)

    def forward(self, batch: TrainingBatch) -> Tensor:
        """Raises PassError for missing labels, and where teacher and student give different shapes."""
        outputs = self.model(*batch.inputs)
        taken = zip(self._watched.take(batch.inputs), self._types, strict=True)
        features = [narrowed(tensor, mine.shape) for tensor, mine in taken]
        alpha, hard = self.options.alpha, self.options.hard_loss or cross_entropy
        loss = alpha * labelled_loss(hard, self.model.structured(outputs), batch.labels) if alpha else torch.zeros(())
        if alpha == 1 and not features:
            return loss
        lesson = self._teacher[0](batch.inputs)
        if alpha < 1:
            loss = loss + (1 - alpha) * self._soft(outputs, lesson)
        weights = self.options.features.values()
        for weight, mine, theirs, item in zip(weights, features, lesson.features, self.maps, strict=True):
            loss = loss + weight * F.mse_loss(item(mine.float()), theirs.float())
        return loss

    def _soft(self, outputs: tuple[Tensor, ...], lesson: Lesson) -> Tensor:
        losses = []
        for index in self.options.outputs:
            if index >= len(lesson.outputs) or lesson.outputs[index].shape != outputs[index].shape:
                given = [list(item.shape) for item in lesson.outputs]
                raise PassError(
                    f"Distill: output {index} of the student is {list(outputs[index].shape)}, the teacher gives {given}"
                )
            losses.append(self._compare(outputs[index], lesson.outputs[index], self.options.temperature))
        return torch.stack(losses).mean()
