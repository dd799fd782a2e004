"""Applying patterns until none applies any more."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from whet.errors import InternalError, PassError
from whet.ir.graph import Graph, Operation, Value
from whet.passes.rewrite.matcher import Failure, matches, shared_value
from whet.passes.rewrite.pattern import CompiledPattern, MatchFailure, RewritePattern
from whet.passes.rewrite.rewriter import Rewriter
from whet.passes.rewrite.tracer import Tracer

_REWRITES_AN_OPERATION = 30
_REWRITES_AT_LEAST = 1000
_RECENT = 40


def apply_patterns(
    graph: Graph, patterns: Sequence[RewritePattern], tracer: Tracer | None = None, limit: int | None = None
) -> Counter[str]:
    """Rewrite `graph` in place to a fixpoint; how often each pattern applied, by name.

    Operations are tried in order, the patterns at each in the order given. What a rewrite touches is tried
    again, and the whole graph once more after a round with changes, so that no pattern applies to the result.

    Raises InternalError, naming the patterns that undo each other, after `limit` rewrites (by default in
    proportion to the graph), and PassError for a rewrite whose result has another type than what it replaces.
    """
    return _Driver(graph, patterns, tracer, limit).run()


class _Driver:
    def __init__(
        self, graph: Graph, patterns: Sequence[RewritePattern], tracer: Tracer | None, limit: int | None
    ) -> None:
        self.graph = graph
        self.tracer = tracer
        self.limit = limit or max(_REWRITES_AT_LEAST, _REWRITES_AN_OPERATION * len(graph.operations))
        self.rewriter = Rewriter(graph)
        self.applied: Counter[str] = Counter()
        self.recent: deque[str] = deque(maxlen=_RECENT)
        self.by_root: dict[str, list[CompiledPattern]] = {}
        for pattern in patterns:
            compiled = CompiledPattern(pattern)
            for name in compiled.roots:
                self.by_root.setdefault(name, []).append(compiled)

    def run(self) -> Counter[str]:
        while True:
            before = self.applied.total()
            self._round()
            self.rewriter.commit()
            if self.applied.total() == before:
                return self.applied

    def _round(self) -> None:
        waiting = deque(operation for operation in self.graph.operations if operation.name in self.by_root)
        queued = set(waiting)
        while waiting:
            operation = waiting.popleft()
            queued.discard(operation)
            if operation in self.rewriter.erased:
                continue
            for again in self._visit(operation):
                if again not in queued and again.name in self.by_root:
                    queued.add(again)
                    waiting.append(again)

    def _visit(self, operation: Operation) -> Iterable[Operation]:
        """Apply the first pattern that does not decline; the operations that it may have changed."""
        for pattern in self.by_root[operation.name]:
            touched = self._try(pattern, operation)
            if touched is None:
                continue
            self.applied[pattern.rule.name] += 1
            self.recent.append(pattern.rule.name)
            if self.applied.total() > self.limit:
                names = sorted(set(self.recent))
                raise InternalError(
                    f"no fixpoint after {self.limit} rewrites, the last at {operation.location}: "
                    f"the pattern(s) {names} undo each other or themselves"
                )
            return touched
        return ()

    def _try(self, pattern: CompiledPattern, operation: Operation) -> list[Operation] | None:
        failure = Failure()
        for match in matches(pattern.roots[operation.name], operation, failure):
            if not pattern.rule.allow_shared:
                shared = shared_value(match, operation, self.rewriter.returned)
                if shared is not None:
                    failure.note(_IN_REWRITE, "used elsewhere", shared)
                    continue
            self.rewriter.begin(operation, match.operations.values())
            try:
                replacement = pattern.call_rewrite(self.rewriter, match.bindings)
            except MatchFailure as decline:
                self.rewriter.abandon()
                failure.note(_IN_REWRITE, decline.reason, *decline.values)
                continue
            except InternalError as error:
                raise PassError(
                    f"pattern {pattern.rule.name} at {operation!r}, {operation.location}: {error}"
                ) from error
            return self._replace(pattern, operation, replacement)
        if self.tracer is not None and failure.reason:
            self.tracer.decline(pattern.rule.name, operation, failure.reason, failure.values)
        return None

    def _replace(self, pattern: CompiledPattern, operation: Operation, replacement: object) -> list[Operation]:
        values = _checked(pattern, operation, replacement)
        if self.tracer is not None:
            self.tracer.apply(pattern.rule.name, operation)
        operands = [value for value in operation.operands if value is not None]
        self.rewriter.replace(operation, values)
        # the users of the new values see new operands, the users of the old operands may be their only ones
        # now
        touched = [*self.rewriter.emitted, *(user for value in (*values, *operands) for user in value.users)]
        return [item for item in dict.fromkeys(touched) if item not in self.rewriter.erased]


# declines in `rewrite` come after the whole pattern has matched: deeper than any of its nodes
_IN_REWRITE = 1 << 20


def _checked(pattern: CompiledPattern, operation: Operation, replacement: object) -> list[Value]:
    values = list(replacement) if isinstance(replacement, tuple | list) else [replacement]
    where = f"pattern {pattern.rule.name} at {operation!r}, {operation.location}"
    checked = [value for value in values if isinstance(value, Value)]
    if len(checked) != len(values) or len(values) != len(operation.results):
        raise PassError(f"{where}: rewrite must return {len(operation.results)} value(s), got {replacement!r}")
    for old, new in zip(operation.results, checked, strict=True):
        if new is old:
            raise PassError(f"{where}: rewrite returned {old!r}, the value that it is to replace")
        if not new.type.same_as(old.type):
            raise PassError(f"{where}: rewrite gives {new.type} in place of {old.type}")
    return checked
