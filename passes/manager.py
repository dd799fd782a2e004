"""Running passes in order: verified, timed, reported."""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whet.errors import InternalError, PassError
from whet.ir.graph import Graph
from whet.ir.printer import print_graph
from whet.ir.verifier import verify
from whet.passes.base import Context, Pass
from whet.passes.randomness import seeded
from whet.passes.report import PassReport, Report
from whet.passes.rewrite.apply import ApplyPatterns
from whet.passes.rewrite.pattern import RewritePattern
from whet.passes.rewrite.tracer import Tracer

Dump = Callable[[str, Graph], None]
"""Called with "00-input", "01-FoldBatchNorm", ... and the graph."""


@dataclass(frozen=True)
class Outcome:
    """The graph after the last pass, and what each pass did."""

    graph: Graph
    report: Report


class PassManager:
    """Runs passes one after the other.

    Args:
        passes: Pass instances, or RewritePattern instances (each a pass that must change something).
        verify: check the graph before the first pass and after each.
        dump: a folder for one text file a stage, or a callable (stage name, graph).
        check_unmodified: compare the printed graphs where a pass says that it changed nothing (slow).

    Raises PassError for anything else among `passes`.
    """

    def __init__(
        self,
        passes: Sequence[Pass | RewritePattern],
        *,
        verify: bool = True,
        dump: Dump | Path | str | None = None,
        check_unmodified: bool = False,
    ) -> None:
        self.passes = tuple(map(as_pass, passes))
        self.verify = verify
        self.dump = dump if callable(dump) or dump is None else _FolderDump(Path(dump))
        self.check_unmodified = check_unmodified

    def run(self, graph: Graph, context: Context | None = None) -> Outcome:
        """The graph that the passes make of `graph`, which stays as it was.

        Raises PassError where a pass that must change something could not, and VerifyError, naming the pass,
        where one leaves a malformed graph.
        """
        context = context or Context()
        context = dataclasses.replace(context, original=context.original or graph)
        if self.verify:
            verify(graph)
        self._dump("00-input", graph)
        entries = []
        for index, item in enumerate(self.passes, start=1):
            graph, entry = self._apply(item, graph, context)
            entries.append(entry)
            self._dump(f"{index:02}-{item.name}", graph)
        return Outcome(graph, Report(tuple(entries)))

    def _apply(self, item: Pass, graph: Graph, context: Context) -> tuple[Graph, PassReport]:
        # a pass that must change something explains itself when it does not, even if nobody asked for a trace
        tracer = context.tracer or (Tracer() if item.must_change else None)
        start = time.perf_counter()
        # data sets shuffle by torch's and numpy's own generators: the same seed must rank the same weights again
        with seeded(context.seed, 0):
            result = item.run(graph, dataclasses.replace(context, tracer=tracer))
        seconds = time.perf_counter() - start
        if not result.modified:
            self._check_unmodified(item, graph, result.graph)
            if item.must_change:
                why = f":\n{tracer.report()}" if tracer is not None and tracer.declined else ""
                raise PassError(f"{item.name} was asked for and could change nothing{why}")
        elif self.verify:
            _verify_after(item, result.graph)
        before, after = _operation_counts(graph), _operation_counts(result.graph)
        return result.graph, PassReport(item.name, result.modified, seconds, before, after, dict(result.changes))

    def _check_unmodified(self, item: Pass, before: Graph, after: Graph) -> None:
        if before is after or not self.check_unmodified:
            return
        if print_graph(before) != print_graph(after):
            raise InternalError(f"{item.name} says modified=False, but the graph's text has changed")

    def _dump(self, stage: str, graph: Graph) -> None:
        if self.dump is not None:
            self.dump(stage, graph)


def as_pass(item: object) -> Pass:
    """A pass, or a pattern as one. Raises PassError for anything else, and for passes that are not frozen."""
    if isinstance(item, RewritePattern):
        return ApplyPatterns((item,))
    if isinstance(item, type) and issubclass(item, Pass | RewritePattern):
        raise PassError(f"{item.__name__} is a class: pass an instance, {item.__name__}()")
    if not isinstance(item, Pass):
        raise PassError(f"a pass is a whet.passes.Pass or RewritePattern instance, got {type(item).__name__}: {item!r}")
    parameters = getattr(type(item), "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise PassError(f"{type(item).__name__} must be a frozen dataclass: decorate it with @dataclass(frozen=True)")
    return item


def _verify_after(item: Pass, graph: Graph) -> None:
    try:
        verify(graph)
    except InternalError as error:
        raise type(error)(f"after {item.name}: {error}") from error


def _operation_counts(graph: Graph) -> Counter[str]:
    """By name; constants do not count as operations."""
    return Counter(operation.name for operation in graph.operations if operation.name != "constant")


class _FolderDump:
    """Writes each stage to `folder/STAGE.txt`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, stage: str, graph: Graph) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", stage)[:80]
        (self.folder / f"{name}.txt").write_text(print_graph(graph), encoding="utf-8")
