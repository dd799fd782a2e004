"""A case: a trained model, how it is compressed, how both compiled modules are judged, and what must come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whet.ir import Graph

Module = Callable[..., Any]
"""A loaded bundle: numpy arrays in, numpy arrays out."""

BOOTSTRAP_SAMPLES = 10_000


@dataclass(frozen=True)
class Metric:
    """One quality of both modules, larger is better.

    Attributes:
        name: with its unit.
        original: of the float module.
        compressed: of the compressed module.
        interval: 95 % of the difference compressed - original, where there are paired samples.
    """

    name: str
    original: float
    compressed: float
    interval: tuple[float, float] | None = None

    @property
    def difference(self) -> float:
        """Compressed minus original."""
        return self.compressed - self.original


def paired(name: str, original: npt.NDArray[Any], compressed: npt.NDArray[Any], scale: float = 100.0) -> Metric:
    """Means of two samples taken on the same items, times `scale`, with the bootstrap interval of their difference."""
    difference = compressed.astype(np.float64) - original.astype(np.float64)
    generator = np.random.default_rng(0)
    # Items with the same difference are exchangeable: drawing how many of each comes is drawing the sample.
    values, counts = np.unique(difference, return_counts=True)
    drawn = generator.multinomial(len(difference), counts / len(difference), size=BOOTSTRAP_SAMPLES)
    means = drawn @ values / len(difference)
    low, high = np.quantile(means, (0.025, 0.975)) * scale
    return Metric(name, float(original.mean() * scale), float(compressed.mean() * scale), (float(low), float(high)))


def right(module: Module, batches: Any) -> npt.NDArray[np.bool_]:
    """Whether the highest score is the label's, picture by picture; the module takes one picture a call."""
    hits = [
        int(np.argmax(module(images[index : index + 1].numpy()))) == int(labels[index])
        for images, labels in batches
        for index in range(len(labels))
    ]
    return np.array(hits)


@dataclass
class Result:
    """What a case gave. Bytes are those of the weight members of the bundle, and of the whole file."""

    case: str
    metrics: list[Metric]
    weight_bytes: tuple[int, int]
    file_bytes: tuple[int, int]
    flops: tuple[float, float]
    parameters: tuple[int, int]
    milliseconds: tuple[float, float] = (float("nan"), float("nan"))
    integer_share: float = float("nan")
    """Of the multiply-adds, in integer kernels."""
    requirements: list[tuple[str, bool]] = field(default_factory=list)

    def metric(self, name: str) -> Metric:
        """The metric whose name begins so."""
        return next(item for item in self.metrics if item.name.startswith(name))

    @property
    def smaller(self) -> float:
        """Bytes of the float weights over bytes of the compressed."""
        return self.weight_bytes[0] / self.weight_bytes[1]

    @property
    def fewer_flops(self) -> float:
        """FLOPs of the float module over those of the compressed."""
        return self.flops[0] / self.flops[1]


@dataclass(frozen=True)
class Requirement:
    """What a case must show: in words, and as a test of the result."""

    text: str
    holds: Callable[[Result], bool]


INTEGER = Requirement("at least 95 % of MACs in integers", lambda result: result.integer_share >= 0.95)


def alike(cosine: float) -> Requirement:
    """Embeddings that point where the float model's do, on average."""
    return Requirement(f"mean cosine at least {cosine}", lambda result: result.metric("mean").compressed >= cosine)


@dataclass(frozen=True)
class Workshop:
    """What compressing may use.

    Attributes:
        folder: for checkpoints, so that an interrupted training goes on.
        progress: told (what, steps done, steps in all).
        train: whether to train anew where a trained graph is saved.
    """

    folder: Path
    progress: Callable[[str, int, int], None]
    train: bool = False


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        name: on the command line.
        title: in words.
        original: the float graph; with a symbolic batch where training needs one.
        compress: that graph, compressed; minutes to hours where it trains.
        compare: qualities of (float module, compressed module), both for batches of one.
        inputs: one call's inputs, for the latency, by the names of the arguments.
        requirements: what must come out.
        reference: the figure of a publication to stand beside.
        integer: whether the share of integer multiply-adds is asked for.
        passes: to make both graphs what is compiled (the symbolic batch is bound to 1 anyway).
        committed: whether the compressed graph is small enough to be kept in benchmarks/weights.
    """

    name: str
    title: str
    original: Callable[[Workshop], Graph]
    compress: Callable[[Graph, Workshop], Graph]
    compare: Callable[[Module, Module], list[Metric]]
    inputs: Callable[[], Mapping[str, npt.NDArray[Any]]]
    requirements: tuple[Requirement, ...]
    reference: str = "-"
    integer: bool = False
    committed: bool = True
