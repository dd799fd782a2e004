"""What a pass is, what it is given besides the graph, and what it gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from whet.ir.graph import Graph
from whet.passes.data import Source

if TYPE_CHECKING:
    from whet.ir.target import Target
    from whet.passes.rewrite.tracer import Tracer

Evaluate = Callable[[Callable[..., Any]], float | Mapping[str, float]]
"""Model -> quality. The model takes and gives torch tensors, as the model that was imported does."""

Latency = Callable[[Graph], Mapping[str, float]]
"""Graph -> measured seconds of its kernels, summed by the path of the module that they come from."""

Progress = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)."""


def silent(step: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


@dataclass
class Context:
    """What passes may need besides the graph; always an argument, never global.

    A pass that lacks a part of it raises PassError and names the part.

    Attributes:
        target: the device to optimize for.
        calibration: batches of model inputs to observe values on; see `whet.passes.data.Batches`.
        train: batches of model inputs and labels to train with; see `whet.passes.data.TrainingBatches`.
        evaluate: callable model -> quality, a number where larger is better or a dict of them; see
            `whet.passes.evaluation`.
        objective: the name of the entry of that dict that counts.
        tracer: collects why patterns declined.
        progress: told (what is being done, steps done, steps in all).
        seed: of every random choice that a pass takes.
        original: the graph before the first pass, which `PassManager.run` fills in: distillation's teacher.
        latency: graph -> seconds on the target by module path, measured; None where there is nothing to measure on.
    """

    target: Target | None = None
    calibration: Source | None = None
    train: Source | None = None
    evaluate: Evaluate | None = None
    objective: str | None = None
    tracer: Tracer | None = None
    progress: Progress = silent
    seed: int = 0
    original: Graph | None = None
    latency: Latency | None = None


@dataclass(frozen=True)
class PassResult:
    """A graph, whether it differs from the one given, and how often what was done.

    `modified=False` promises that the text of `graph` is that of the graph given, byte for byte.
    """

    graph: Graph
    modified: bool
    changes: Mapping[str, int] = field(default_factory=dict)


class Pass(ABC):
    """Graph to graph. Subclasses are frozen dataclasses: their fields are the pass's options.

    A pass leaves the graph it was given as it was: it edits a `clone`, or builds a new graph, sharing the
    tensors.
    """

    must_change: ClassVar[bool] = False
    """Whether changing nothing is an error: so for what somebody asks for, not for what tidies up."""

    @abstractmethod
    def run(self, graph: Graph, context: Context) -> PassResult:
        """Apply this pass. Raises PassError for options or a context that it cannot work with."""

    def __call__(self, graph: Graph, context: Context | None = None) -> PassResult:
        """`run`, with an empty context unless one is given."""
        return self.run(graph, context or Context())

    @property
    def name(self) -> str:
        return type(self).__name__
