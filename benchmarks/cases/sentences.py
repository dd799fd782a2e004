"""MiniLM in integers, four ways, and factorized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.cases import texts
from benchmarks.cases.case import INTEGER, Case, Requirement, Workshop, alike
from benchmarks.cases.classification import apply
from whet.ir import Graph
from whet.ir.target import get_target
from whet.passes import (
    Context,
    Distill,
    Factorize,
    Pass,
    QuantizeDynamic,
    QuantizeStatic,
    QuantizeWeights,
    SmoothQuant,
)
from whet.passes.quantization.gptq import GPTQ

_EMBEDDINGS = QuantizeWeights(bits=8)
"""After the layers have integers, what is left: the tables of embeddings, half of the parameters."""


def _context(workshop: Workshop) -> Context:
    return Context(target=get_target("x86"), calibration=texts.calibration(), progress=workshop.progress)


def _with(passes: Sequence[Pass]) -> Callable[[Graph, Workshop], Graph]:
    return lambda graph, workshop: apply(graph, passes, _context(workshop))


class _Unlabelled:
    """The articles that train the probe, without their labels, in another order each epoch."""

    def __init__(self, size: int = 16) -> None:
        self._size = size

    def __len__(self) -> int:
        return texts.PROBE_TEXTS // self._size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        train = texts.news()[0]
        order = torch.randperm(len(train.labels))
        for step in range(len(self)):
            chosen = order[step * self._size : (step + 1) * self._size]
            yield train.ids[chosen], train.mask[chosen]


def _factorized(graph: Graph, workshop: Workshop) -> Graph:
    """Whitened SVD of the linear layers to 60 % of their parameters, then distillation of the embeddings."""
    context = _context(workshop)
    context.train = _Unlabelled()
    context.original = graph
    recover = Distill(
        loss="cosine",
        alpha=0.0,
        epochs=6,
        optimizer="adamw",
        learning_rate=1e-4,
        precision="bf16",
        checkpoint=str(workshop.folder / "recover"),
    )
    return apply(graph, [Factorize(ratio=0.6, method="whitened"), recover], context)


_PROBE = Requirement("BBC probe at most 0.5 pp", lambda result: result.metric("BBC").difference >= -0.5)
_WORDS = Requirement("wordsim353 rho within .01", lambda result: abs(result.metric("wordsim").difference) <= 0.01)


def _case(
    name: str,
    title: str,
    compress: Callable[[Graph, Workshop], Graph],
    requirements: tuple[Requirement, ...],
    reference: str = "OpenVINO BERT: 0.1-0.5 pp",
    integer: bool = False,
) -> Case:
    return Case(
        name,
        title,
        lambda workshop: texts.symbolic_graph(),
        compress,
        texts.compare,
        texts.inputs,
        requirements,
        reference,
        integer,
        committed=False,
    )


CASES = (
    _case(
        "minilm-int8",
        "MiniLM, static int8 with SmoothQuant",
        _with([SmoothQuant(alpha=0.8), QuantizeStatic()]),
        (_PROBE, _WORDS, alike(0.99), INTEGER),
        integer=True,
    ),
    _case(
        "minilm-dynamic",
        "MiniLM, dynamic int8",
        _with([QuantizeDynamic(), _EMBEDDINGS]),
        (_PROBE, _WORDS, alike(0.99), INTEGER),
        integer=True,
    ),
    _case(
        "minilm-int4",
        "MiniLM, int4 weights in groups of 64 (GPTQ)",
        _with([QuantizeWeights(bits=4, group_size=64, symmetric=False, rounding=GPTQ())]),
        (_PROBE, _WORDS, alike(0.97)),
    ),
    _case(
        "minilm-factorized",
        "MiniLM, linear layers factorized to 60 %, distilled without labels",
        _factorized,
        (Requirement("BBC probe at most 1 pp", lambda result: result.metric("BBC").difference >= -1.0),),
        "DistilBERT: 60 % size, 97 % kept",
    ),
)
