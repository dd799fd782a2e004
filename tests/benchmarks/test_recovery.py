"""Recovery on real data: a pruned, shared LeNet-300-100 regains what it lost on digits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.export import Dim

from benchmarks import data
from benchmarks.baselines import accuracy, load_baseline
from benchmarks.splits import Part, mnist
from whet.frontend import import_model
from whet.ir import Graph
from whet.passes import Context, FineTune, PassManager, QuantizeCodebook, UnstructuredPruning
from whet.passes.evaluation import GraphModel
from whet.passes.weights import evaluate_weight


def _weights(graph: Graph) -> list[torch.Tensor]:
    layers = [operation for operation in graph.operations if operation.name == "linear"]
    return [tensor for layer in layers if (tensor := evaluate_weight(layer.operand(1))) is not None]


def test_a_pruned_network_with_shared_weights_regains_its_accuracy(need: Callable[..., None]) -> None:
    need(data.MNIST)
    splits = mnist()
    x = splits.test.images[:2]
    graph = import_model(load_baseline("lenet300"), (x,), None, ({0: Dim("batch", max=4096)},))
    test = Part(splits.test.images[:2000], splits.test.labels[:2000])
    train = Part(splits.train.images[:4000], splits.train.labels[:4000]).batches(100)
    context = Context(train=train)
    pruned = UnstructuredPruning(ratio=0.9)(graph, context).graph
    steps = (FineTune(epochs=2, learning_rate=0.05), QuantizeCodebook(bits=2), FineTune(epochs=2, learning_rate=0.2))
    recovered = PassManager(steps).run(pruned, context).graph
    original, before, after = (accuracy(GraphModel(item), test) for item in (graph, pruned, recovered))
    assert before < original - 4 and after > original - 3, (original, before, after)
    for old, new in zip(_weights(pruned), _weights(recovered), strict=True):
        assert torch.equal(old == 0, new == 0) and len(new.unique()) <= 5
