"""Fine-tuning: that it learns, keeps what compression did, stops early, resumes, and says what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import whet
from tests.passes.equality import build, relative_error, weight
from tests.passes.recovery.tasks import (
    accuracy_on,
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
from whet.ir import Builder, Graph, Interpreter, Value, print_graph, verify
from whet.passes import Context, PassManager
from whet.passes.recovery.fine_tune import FineTune
from whet.passes.recovery.schedule import SCHEDULES
from whet.passes.weights import evaluate_weight


@pytest.fixture
def graph() -> Graph:
    return mlp_graph()


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.1},
        {"optimizer": "adamw", "learning_rate": 0.01, "schedule": "one-cycle"},
    ],
    ids=["sgd", "adamw"],
)
def test_it_learns(graph: Graph, options: dict[str, Any]) -> None:
    evaluate = accuracy_on(points(seed=9))
    text = print_graph(graph)
    result = PassManager([FineTune(epochs=20, **options)]).run(graph, context(points(8)))
    assert print_graph(graph) == text
    assert evaluate(lambda x: scores(result.graph, x)) > 0.85 > evaluate(lambda x: scores(graph, x))
    assert [value.name for value in result.graph.values()] == [value.name for value in graph.values()]
    assert result.report.passes[0].changes == {"tensor trained": 4}


def test_bf16_products_learn_nearly_the_same() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor does not compute in bf16")
    x = points()[0][0]
    exact, rough = (
        scores(FineTune(epochs=1, precision=precision)(mlp_graph(), context(points())).graph, x)
        for precision in ("f32", "bf16")
    )
    assert 0 < relative_error(rough, exact) < 0.02


def test_batch_norms_learn_and_estimate() -> None:
    graph = small_graph()
    result = FineTune(epochs=4, learning_rate=0.1)(graph, context(pictures(8))).graph
    evaluate = accuracy_on(pictures(seed=9))
    assert evaluate(lambda x: scores(result, x)) > 0.8 > evaluate(lambda x: scores(graph, x))
    before, after = constants(graph), constants(result)
    assert all(not torch.equal(before[name], after[name]) for name in before if "running" in name)
    frozen = FineTune(epochs=1, freeze_batch_norm=True)(graph, context(pictures())).graph
    after = constants(frozen)
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)


def test_the_seed_decides_everything(graph: Graph) -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)

    def shuffled() -> Iterator[Any]:
        return iter([points()[index] for index in torch.randperm(4).tolist()])

    def run(seed: int) -> Graph:
        return FineTune(epochs=2, augment=noisy)(graph, context(shuffled, seed=seed)).graph

    before = torch.get_rng_state()
    first, second, third = run(0), run(0), run(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_constants(first, second)
    assert any(not torch.equal(a, b) for a, b in zip(constants(first).values(), constants(third).values(), strict=True))


def test_pruned_weights_stay_pruned() -> None:
    mask = torch.rand(16, 4) < 0.5

    def body(b: Builder, x: Value) -> Value:
        masked = b.masked(b.constant(weight(16, 4), "a.weight"), b.constant(mask))
        return b.linear(b.relu(b.linear(x, masked, None)), b.constant(weight(3, 16), "b.weight"), None)  # type: ignore[no-any-return]

    graph = build(body, (16, 4))
    options = FineTune(epochs=5, learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    trained = options(graph, context(points())).graph
    before, after = (evaluate_weight(_linears(item)[0].operand(1)) for item in (graph, trained))
    assert before is not None and after is not None
    assert torch.equal(after == 0, mask.logical_not())
    assert not torch.equal(before, after)


def _linears(graph: Graph) -> list[Any]:
    return [operation for operation in graph.operations if operation.name == "linear"]


def test_shared_weights_stay_shared(graph: Graph) -> None:
    def body(b: Builder, x: Value) -> Value:
        indices = torch.randint(0, 4, (3, 4)).to(torch.uint8)
        return b.linear(x, b.lookup(b.constant(weight(4), "codebook"), b.constant(indices)), None)  # type: ignore[no-any-return]

    shared = build(body, (16, 4))
    trained = FineTune(epochs=5, learning_rate=0.1)(shared, context(points())).graph
    tensor = evaluate_weight(_linears(trained)[0].operand(1))
    assert tensor is not None and len(tensor.unique()) <= 4
    assert not torch.equal(constants(trained)["codebook"], constants(shared)["codebook"])


def test_the_best_weights_are_kept_and_patience_ends_training(graph: Graph) -> None:
    qualities = iter([0.5, 0.9, 0.7, 0.6, 0.8, 0.1])
    seen: list[Tensor] = []

    def evaluate(model: Callable[..., Any]) -> float:
        seen.append(model(points()[0][0]))
        return next(qualities)

    trained = FineTune(epochs=50, patience=3)(graph, context(points(), evaluate=evaluate)).graph
    assert len(seen) == 5
    assert torch.equal(scores(trained, points()[0][0]), seen[1])


def test_evaluate_sees_the_statistics_that_were_trained() -> None:
    graph = small_graph()
    x, seen = pictures(seed=9)[0][0], []
    result = FineTune(epochs=1)(graph, context(pictures(), evaluate=lambda model: seen.append(model(x)) or 1.0)).graph
    torch.testing.assert_close(scores(result, x), seen[0])


class Interrupted(Exception):
    """Stands for the power going off."""


def _stopping_after(epochs: int, batches: list[Any]) -> Callable[[], Iterator[Any]]:
    """A source that breaks in the middle of an epoch; one more reading counts the batches."""
    readings = iter(range(100))

    def read() -> Iterator[Any]:
        reading = next(readings)
        for index, batch in enumerate(batches):
            if reading == epochs + 1 and index == 2:
                raise Interrupted
            yield batch

    return read


@pytest.mark.parametrize(("optimizer", "average"), [("sgd", 0), ("sgd", 3), ("adamw", 0)])
def test_an_interrupted_training_goes_on_to_the_same_result(tmp_path: Path, optimizer: str, average: int) -> None:
    graph = small_graph()
    evaluate = accuracy_on(pictures(seed=9))

    def noisy(x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)

    def run(source: Any, checkpoint: Path | None) -> Graph:
        options = FineTune(epochs=4, optimizer=optimizer, average=average, augment=noisy, checkpoint=checkpoint)
        return options(graph, context(source, evaluate=evaluate)).graph

    whole = run(pictures(), None)
    with pytest.raises(Interrupted):
        run(_stopping_after(2, pictures()), tmp_path / "run")
    note = json.loads((tmp_path / "run" / "state.json").read_text())
    assert note["state"]["epoch"] == 2 and len(note["state"]["scores"]) == 2
    assert_same_constants(run(pictures(), tmp_path / "run"), whole)
    if not average:
        # a finished training reads no data again; with a mean of weights it does, for the statistics of that
        assert_same_constants(run(_stopping_after(-1, pictures()), tmp_path / "run"), whole)
    assert {item.name for item in (tmp_path / "run").iterdir()} == {"state.json", "epoch-4.safetensors"}


def test_the_weights_of_the_last_epochs_are_averaged() -> None:
    """And batch norms get the statistics that go with the mean: those of the data under these weights."""
    graph, data = small_graph(), pictures()

    def trained(epochs: int, average: int = 0) -> dict[str, Tensor]:
        options = FineTune(epochs=epochs, schedule="constant", learning_rate=0.02, average=average)
        return constants(options(graph, context(data)).graph)

    mean, parts = trained(4, average=3), [trained(epochs) for epochs in (2, 3, 4)]
    weights = [name for name in mean if "running" not in name]
    assert weights
    for name in weights:
        torch.testing.assert_close(mean[name], sum(part[name] for part in parts) / 3, rtol=1e-5, atol=1e-6)
    (name,) = [name for name in mean if name.endswith("norm1.running_mean")]
    first = torch.cat([torch.nn.functional.conv2d(x, mean["conv1.weight"], padding=1) for x, _ in data])
    torch.testing.assert_close(mean[name], first.mean((0, 2, 3)), rtol=0.1, atol=0.02)


def test_a_checkpoint_of_something_else_is_refused(graph: Graph, tmp_path: Path) -> None:
    FineTune(epochs=1, checkpoint=tmp_path)(graph, context(points()))
    with pytest.raises(PassError, match=r"another training: epochs, learning_rate differ"):
        FineTune(epochs=2, learning_rate=0.5, checkpoint=tmp_path)(graph, context(points()))
    with pytest.raises(PassError, match=r"another training: graph differ"):
        FineTune(epochs=1, checkpoint=tmp_path)(small_graph(), context(points()))
    (tmp_path / "epoch-1.safetensors").write_bytes(b"torn")
    with pytest.raises(PassError, match=r"cannot read the checkpoint.*delete it"):
        FineTune(epochs=1, checkpoint=tmp_path)(graph, context(points()))


def test_an_unwritable_checkpoint_is_an_error(graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PassError, match="cannot write the checkpoint"):
        FineTune(epochs=1, checkpoint=tmp_path / "file" / "folder")(graph, context(points()))


def test_control_c_says_that_the_checkpoint_is_kept(graph: Graph, tmp_path: Path) -> None:
    def evaluate(model: Callable[..., Any]) -> float:
        if (tmp_path / "state.json").exists():
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt) as caught:
        FineTune(epochs=5, checkpoint=tmp_path)(graph, context(points(), evaluate=evaluate))
    assert "kept in" in caught.value.__notes__[0]
    assert json.loads((tmp_path / "state.json").read_text())["state"]["epoch"] == 1


def test_progress_names_loss_and_metric(graph: Graph) -> None:
    told: list[tuple[str, int, int]] = []
    parts = {"evaluate": lambda model: 0.75, "progress": lambda *step: told.append(step)}
    FineTune(epochs=2)(graph, context(points(), **parts))
    assert [(done, total) for _, done, total in told] == [(step, 8) for step in range(1, 9)]
    assert "loss" in told[0][0] and "metric 0.75" in told[-1][0] and all(len(text) <= 44 for text, _, _ in told)


def test_a_loss_of_ones_own(graph: Graph) -> None:
    def squared(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs - labels).square().mean()

    batches = [(x, torch.ones(len(x), 3)) for x, _ in points()]
    trained = FineTune(epochs=40, learning_rate=0.1, loss=squared)(graph, context(batches)).graph
    assert float((scores(trained, points()[0][0]) - 1).abs().max()) < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"optimizer": "sdg"}, "optimizer is one of sgd, adamw, not 'sdg'"),
        ({"schedule": "linear"}, "schedule is one of"),
        ({"precision": "f64"}, "precision is one of"),
        ({"momentum": 1.0}, "momentum must be below 1"),
        ({"patience": 2}, "needs a quality to watch"),
        ({"average": 11}, "average is of 0 to epochs=10"),
        ({"average": 2, "patience": 2}, "give one of both"),
    ],
)
def test_impossible_options(graph: Graph, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PassError, match=message):
        FineTune(**options)(graph, context(points()))


def test_missing_data_and_labels(graph: Graph) -> None:
    with pytest.raises(PassError, match="needs train data"):
        FineTune()(graph, Context())
    with pytest.raises(PassError, match="empty"):
        FineTune()(graph, context([]))
    with pytest.raises(PassError, match=r"no labels: .*alpha=0"):
        FineTune()(graph, context([(x,) for x, _ in points()]))
    with pytest.raises(PassError, match=r"no cross entropy of outputs \[16, 3\] and labels \[16, 2\]"):
        FineTune()(graph, context([(x, torch.zeros(16, 2)) for x, _ in points()]))
    with pytest.raises(PassError, match="scalar tensor, the mean over the batch; it gave"):
        FineTune(loss=lambda outputs, labels: outputs)(graph, context(points()))


def test_a_loss_that_is_not_finite_names_the_step(graph: Graph) -> None:
    def exploding(outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.sum() * math.inf

    with pytest.raises(PassError, match=r"loss is .* at step 0 of epoch 1: try a lower learning_rate \(it is 0.01\)"):
        FineTune(loss=exploding)(graph, context(points()))


def test_a_loss_that_nothing_trained_changes(graph: Graph) -> None:
    with pytest.raises(PassError, match="does not depend on anything that is trained"):
        FineTune(loss=lambda outputs, labels: outputs.detach().sum())(graph, context(points()))


def test_no_learning_is_an_error(graph: Graph) -> None:
    with pytest.raises(PassError, match="could change nothing"):
        PassManager([FineTune(epochs=1, learning_rate=0.0)]).run(graph, context(points()))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_stay_within_the_rate_and_end_low(name: str) -> None:
    factors = [SCHEDULES[name](step / 100) for step in range(100)]
    assert max(factors) == pytest.approx(1.0) and min(factors) >= 0.0
    assert factors[-1] == 1.0 if name == "constant" else factors[-1] < 0.02


def test_the_compiled_module_has_the_trained_weights() -> None:
    model, x = mlp().eval(), points()[0][0]
    options = FineTune(epochs=2, learning_rate=0.1)
    compiled = whet.optimize(model, example_inputs=(x,), passes=[options], train=points(), progress=False)
    trained = options(imported(model, x), context(points())).graph
    verify(trained)
    (expected,) = Interpreter(trained)(x)
    assert relative_error(torch.as_tensor(compiled(x)), expected) < 1e-4


def test_fine_tuning_wants_a_module_with_weights() -> None:
    graph = imported(nn.ReLU(), torch.randn(2, 4))
    with pytest.raises(PassError, match="nothing to train"):
        FineTune()(graph, context(points()))
