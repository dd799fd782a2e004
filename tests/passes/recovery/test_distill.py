"""Distillation: the loss, where the teacher comes from, features, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.equality import build, weight
from tests.passes.recovery.tasks import (
    SmallNet,
    assert_same_constants,
    constants,
    context,
    imported,
    mlp,
    mlp_graph,
    pictures,
    points,
    scores,
    small_graph,
)
from whet.errors import PassError
from whet.ir import Graph
from whet.passes import PassManager
from whet.passes.base import Context, Pass, PassResult
from whet.passes.data import TrainingBatch
from whet.passes.recovery.distill import LOSSES, Distill
from whet.passes.recovery.fine_tune import FineTune
from whet.passes.recovery.trainable import TrainableGraph


def loss_of(options: Distill, graph: Graph, batch: TrainingBatch, original: Graph | None = None) -> Tensor:
    train = [(*batch.inputs, batch.labels)]
    loss: Tensor = options.objective(TrainableGraph(graph), Context(train=train, original=original))(batch)
    return loss


def perturbed(graph: Graph, seed: int = 1) -> Graph:
    """Another student: the same graph with other weights."""
    clone, generator = graph.clone(), torch.Generator().manual_seed(seed)
    for value in clone.constants:
        assert value.producer is not None and value.constant is not None
        if value.type.dtype.is_float and "running" not in value.name:
            noise = 0.3 * torch.randn(value.constant.shape, generator=generator)
            value.producer.attributes["tensor"] = value.constant + noise
    return clone


@pytest.mark.parametrize(("temperature", "alpha"), [(4.0, 0.1), (1.0, 0.0), (2.5, 1.0)])
def test_the_loss_is_that_of_the_paper(temperature: float, alpha: float) -> None:
    """α · CE + (1 - α) · T² · KL, against torch's own."""
    teacher, student = mlp_graph(), perturbed(mlp_graph())
    x, labels = points()[0]
    found = loss_of(Distill(temperature=temperature, alpha=alpha), student, TrainingBatch((x,), labels), teacher)
    s, t = scores(student, x), scores(teacher, x)
    soft = F.kl_div(
        (s / temperature).log_softmax(1), (t / temperature).log_softmax(1), reduction="batchmean", log_target=True
    )
    expected = alpha * F.cross_entropy(s, labels) + (1 - alpha) * temperature**2 * soft
    torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_losses_of_numbers_that_are_no_scores(loss: str) -> None:
    teacher, student = mlp_graph(), perturbed(mlp_graph())
    x, labels = points()[0]
    found = loss_of(Distill(alpha=0.0, loss=loss), student, TrainingBatch((x,), labels), teacher)
    s, t = scores(student, x), scores(teacher, x)
    expected = F.mse_loss(s, t) if loss == "mse" else (1 - F.cosine_similarity(s, t)).mean()
    torch.testing.assert_close(found.detach(), expected)
    assert float(LOSSES[loss](t, t, 1.0)) == pytest.approx(0.0, abs=1e-6)


class Disturb(Pass):
    """Stands for compression."""

    def run(self, graph: Graph, context: Context) -> PassResult:
        return PassResult(perturbed(graph), True)


def frozen(item: Any) -> Any:
    import dataclasses

    return dataclasses.dataclass(frozen=True)(item)


def test_the_original_graph_teaches_without_labels() -> None:
    """The student comes back to the graph before the first pass."""
    graph, x = mlp_graph(), points(seed=9)[0][0]
    unlabelled = [(inputs,) for inputs, _ in points(8)]
    options = Distill(alpha=0.0, loss="mse", epochs=12, learning_rate=0.1)
    result = PassManager([frozen(Disturb)(), options]).run(graph, context(unlabelled)).graph
    wanted = scores(graph, x)
    before, after = (float((scores(item, x) - wanted).norm()) for item in (perturbed(graph), result))
    assert after < 0.3 * before


def test_a_module_teaches_in_evaluation_mode_and_stays_as_it_was() -> None:
    teacher = SmallNet().train()
    teacher.norm1.eval()
    x, labels = pictures()[0]
    student = small_graph()
    from_module = loss_of(Distill(teacher=teacher, alpha=0.0), student, TrainingBatch((x,), labels))
    assert teacher.training and teacher.norm2.training and not teacher.norm1.training
    from_graph = loss_of(Distill(teacher=imported(teacher, x), alpha=0.0), student, TrainingBatch((x,), labels))
    from_call = loss_of(Distill(teacher=lambda x: teacher.eval()(x), alpha=0.0), student, TrainingBatch((x,), labels))
    torch.testing.assert_close(from_module, from_graph)
    torch.testing.assert_close(from_module, from_call)


def test_nothing_of_the_teacher_is_trained() -> None:
    teacher = mlp()
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    Distill(teacher=teacher, epochs=1)(mlp_graph(), context(points()))
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())


def test_features_are_matched_by_module_path() -> None:
    graph, student = small_graph(), perturbed(small_graph())
    x, labels = pictures()[0]
    batch = TrainingBatch((x,), labels)
    plain = loss_of(Distill(), student, batch, graph)
    matched = loss_of(Distill(features={"conv2": 0.5, "head": 0.25}), student, batch, graph)
    by_name = {value.name: value for value in graph.values()}
    conv = next(value for value in by_name.values() if value.producer and value.producer.location.module == "conv2")
    named = loss_of(Distill(features={conv.name: 0.5, "linear": 0.25}), student, batch, graph)
    assert float(matched.detach()) > float(plain.detach())
    torch.testing.assert_close(matched, named)


@pytest.mark.parametrize("as_graph", [True, False])
def test_a_narrower_student_learns_a_map_of_channels(as_graph: bool) -> None:
    """FitNets: the map is trained along, and nothing of it is left in the graph."""
    model = SmallNet(width=8).eval()
    x = pictures()[0][0]
    teacher: Any = imported(model, x) if as_graph else model
    student = imported(SmallNet(width=4), x)
    options = Distill(teacher=teacher, features={"conv1": 1.0, "conv2": 1.0}, epochs=2, learning_rate=0.05)
    objective = options.objective(TrainableGraph(student), context(pictures()))
    own = [tensor for name, tensor in objective.named_parameters() if not name.startswith("model.")]
    assert sorted(tuple(tensor.shape) for tensor in own) == [(8,), (8,), (8, 4), (8, 4)]
    trained = options(student, context(pictures())).graph
    assert constants(trained).keys() == constants(student).keys()


def test_resuming_keeps_the_maps(tmp_path: Any) -> None:
    x = pictures()[0][0]
    teacher, student = imported(SmallNet(width=8), x), imported(SmallNet(width=4), x)

    def run(checkpoint: Any, fails: bool = False) -> Graph:
        calls = iter(range(100))

        def evaluate(model: Any) -> float:
            if fails and next(calls) == 1:
                raise KeyboardInterrupt
            return 0.0

        options = Distill(teacher=teacher, features={"conv1": 1.0}, epochs=3, checkpoint=checkpoint)
        return options(student, context(pictures(), evaluate=evaluate)).graph

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, fails=True)
    assert_same_constants(run(tmp_path), run(None))


def test_several_outputs() -> None:
    def body(b: Any, x: Any) -> Any:
        hidden = b.linear(x, b.constant(weight(5, 4), "a"), None)
        return hidden, b.linear(hidden, b.constant(weight(3, 5, seed=1), "b"), None)

    graph = build(body, (16, 4))
    student, batch = perturbed(graph), TrainingBatch((points()[0][0],))
    first, second, both = (
        loss_of(Distill(alpha=0.0, loss="mse", outputs=outputs), student, batch, graph)
        for outputs in ((0,), (1,), (0, 1))
    )
    torch.testing.assert_close(both, (first + second) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "l1"}, "loss is one of kl, mse, cosine"),
        ({"alpha": 1.5}, "alpha must be from 0 to 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"features": ("conv1",)}, "features is {module path: weight}"),
        ({"features": {"nowhere": 1.0}}, r"no value and no module 'nowhere'; its modules are 0, 1, 2"),
        ({"outputs": (1,)}, "the graph has 1 output"),
        ({"teacher": 3}, "teacher must be a Graph, a module or a callable, not 3"),
        ({"teacher": lambda x: x, "features": {"0": 1.0}}, "shows no features"),
        ({"teacher": nn.Linear(4, 3), "features": {"0": 1.0}}, "the teacher has no module '0'"),
        ({"teacher": nn.Linear(4, 2)}, r"output 0 of the student is \[16, 3\], the teacher gives \[\[16, 2\]\]"),
        ({"teacher": nn.Sequential(nn.Unflatten(1, (2, 2))), "features": {"0": 1.0}}, "the number of channels alone"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PassError, match=message):
        Distill(**options)(mlp_graph(), context(points(), original=mlp_graph()))


def test_missing_labels_and_teacher() -> None:
    with pytest.raises(PassError, match="alpha=0"):
        Distill(alpha=0.1)(mlp_graph(), context([(x,) for x, _ in points()], original=mlp_graph()))
    with pytest.raises(PassError, match="not None"):
        Distill()(mlp_graph(), context(points()))


def test_distilling_from_labels_alone_is_fine_tuning() -> None:
    options: dict[str, Any] = {"epochs": 2, "learning_rate": 0.1}
    distilled = Distill(alpha=1.0, **options)(mlp_graph(), context(points(), original=mlp_graph())).graph
    assert_same_constants(distilled, FineTune(**options)(mlp_graph(), context(points())).graph)
