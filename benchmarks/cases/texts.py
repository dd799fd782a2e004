"""MiniLM's sentence embeddings on real texts, and the three measures of them: a news probe, word pairs, cosine."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import datasets
from benchmarks.cases.case import Metric, Module, paired
from benchmarks.models.minilm import encode, load_minilm, sentence_embedding
from benchmarks.models.trained import MINILM_TOKENS
from whet.frontend import import_model
from whet.ir import Graph

PROBE_TEXTS, CALIBRATION_TEXTS = 1000, 64
"""Texts that train the probe, and texts that calibrate; the others are the test set."""
_PROBE_DECAY = 1e-4


class Embedder(nn.Module):
    """Token ids and mask (N, 128) to sentence embeddings (N, 384) of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = load_minilm()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """int64 (N, 128) twice -> (N, 384)."""
        return sentence_embedding(self.encoder(input_ids=ids, attention_mask=mask), mask)


@dataclass(frozen=True)
class Texts:
    """Tokenized texts with their classes: those that train the probe, that calibrate, and that test."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def part(self, chosen: slice) -> Texts:
        """Some of them."""
        return Texts(self.ids[chosen], self.mask[chosen], self.labels[chosen])


@functools.cache
def news() -> tuple[Texts, Texts, Texts]:
    """Probe's training, calibration, and test articles, disjoint: each text counts once, in a shuffled order."""
    distinct = {text.content: text for text in datasets.bbc_news()}
    texts = list(distinct.values())
    order = np.random.default_rng(0).permutation(len(texts))
    texts = [texts[index] for index in order]
    classes = sorted({text.label for text in texts})
    ids, mask = encode([text.content for text in texts], MINILM_TOKENS)
    everything = Texts(ids, mask, torch.tensor([classes.index(text.label) for text in texts]))
    second = PROBE_TEXTS + CALIBRATION_TEXTS
    return (
        everything.part(slice(PROBE_TEXTS)),
        everything.part(slice(PROBE_TEXTS, second)),
        everything.part(slice(second, None)),
    )


def symbolic_graph() -> Graph:
    """The embedder for any batch of 128 tokens."""
    probe = news()[0]
    batch = torch.export.Dim("batch", max=512)
    return import_model(Embedder().eval(), (probe.ids[:2], probe.mask[:2]), None, ({0: batch}, {0: batch}))


def embed(module: Module, texts: Texts) -> Tensor:
    """(N, 384), one text a call."""
    rows = [
        module(texts.ids[index : index + 1].numpy(), texts.mask[index : index + 1].numpy())
        for index in range(len(texts.labels))
    ]
    return torch.from_numpy(np.concatenate(rows))


def probe(embeddings: Tensor, labels: Tensor) -> nn.Linear:
    """Multinomial logistic regression with a little weight decay, to convergence."""
    layer = nn.Linear(embeddings.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(layer(embeddings), labels) + _PROBE_DECAY * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return layer


def rank_correlation(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Spearman's rho: the correlation of the ranks, ties at their mean."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[inverse]


def word_similarity(module: Module) -> float:
    """Rank correlation between people's judgement of 353 word pairs and the embeddings' cosine."""
    pairs = datasets.wordsim353()
    words = sorted({word for pair in pairs for word in (pair.first, pair.second)})
    ids, mask = encode(words, MINILM_TOKENS)
    vectors = dict(zip(words, embed(module, Texts(ids, mask, torch.zeros(len(words)))).double().numpy(), strict=True))
    cosines = np.array([vectors[pair.first] @ vectors[pair.second] for pair in pairs])
    return rank_correlation(np.array([pair.similarity for pair in pairs]), cosines)


def compare(original: Module, compressed: Module) -> list[Metric]:
    """The probe is trained on the float model's embeddings and put before both: a drop-in replacement is asked for."""
    train, _, test = news()
    classifier = probe(embed(original, train), train.labels)
    first, second = embed(original, test), embed(compressed, test)
    with torch.no_grad():
        hits = [(classifier(vectors).argmax(1) == test.labels).numpy() for vectors in (first, second)]
    cosine = F.cosine_similarity(first, second)
    return [
        paired("BBC probe %", *hits),
        Metric("wordsim353 rho", word_similarity(original), word_similarity(compressed)),
        Metric("mean cosine to float", 1.0, float(cosine.mean())),
        Metric("lowest cosine to float", 1.0, float(cosine.min())),
    ]


def inputs() -> Mapping[str, np.ndarray]:
    """One test article."""
    test = news()[2]
    return {"ids": test.ids[:1].numpy(), "mask": test.mask[:1].numpy()}


def calibration(count: int = CALIBRATION_TEXTS) -> Sequence[tuple[Tensor, Tensor]]:
    """Batches of eight held-out articles."""
    texts = news()[1]
    return list(zip(texts.ids[:count].split(8), texts.mask[:count].split(8), strict=True))
