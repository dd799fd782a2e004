"""The pass manager: order, verification, honesty, loud refusals, dumps, the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tests.passes.equality import build, weight
from whet import passes
from whet.errors import InternalError, PassError, VerifyError
from whet.ir import Graph, Value, parse_graph, print_graph
from whet.ir.printer import graph_tensors
from whet.passes import (
    Context,
    DeadCodeElimination,
    Pass,
    PassManager,
    PassResult,
    RewritePattern,
    Rewriter,
    ops,
)


@dataclass(frozen=True)
class Nothing(Pass):
    def run(self, graph: Graph, context: Context) -> PassResult:
        return PassResult(graph, False)


@dataclass(frozen=True)
class Compress(Nothing):
    must_change: ClassVar[bool] = True


@dataclass(frozen=True)
class Break(Pass):
    def run(self, graph: Graph, context: Context) -> PassResult:
        clone = graph.clone()
        clone.operations.reverse()
        return PassResult(clone, True)


@dataclass(frozen=True)
class Lie(Pass):
    def run(self, graph: Graph, context: Context) -> PassResult:
        clone = graph.clone()
        clone.operations[-1].results[0].name = "other"
        return PassResult(clone, False)


@dataclass(frozen=True)
class Remember(Pass):
    seen: list[Context]

    def run(self, graph: Graph, context: Context) -> PassResult:
        self.seen.append(context)
        return PassResult(graph, False)


class AbsToRelu(RewritePattern):
    def pattern(self, x: Any) -> Any:
        return ops.abs(x)

    def rewrite(self, rewriter: Rewriter, x: Value) -> Any:
        return rewriter.relu(x)


@pytest.fixture
def graph() -> Graph:
    return build(lambda b, x: (b.abs(b.neg(x)), b.linear(x, b.constant(weight(2, 3)), None))[0], (2, 3))


def test_passes_run_in_order_and_the_report_says_what_they_did(graph: Graph) -> None:
    text = print_graph(graph)
    outcome = PassManager([DeadCodeElimination(), AbsToRelu(), Nothing()]).run(graph)
    assert print_graph(graph) == text
    first, second, third = outcome.report.passes
    assert (first.name, second.name, third.name) == ("DeadCodeElimination", "AbsToRelu", "Nothing")
    assert first.modified and first.changes == {"dead operation": 2} and first.difference == {"linear": -1}
    assert second.difference == {"abs": -1, "relu": 1} and second.changes == {"AbsToRelu": 1}
    assert not third.modified and third.difference == {}
    assert outcome.report.seconds == first.seconds + second.seconds + third.seconds
    lines = str(outcome.report).splitlines()
    assert "3 ->     2 ops" in lines[0] and "-1 linear" in lines[0]
    assert "1 x AbsToRelu" in lines[1] and lines[2].endswith("nothing to do")


def test_no_passes(graph: Graph) -> None:
    outcome = PassManager([]).run(graph)
    assert outcome.graph is graph and str(outcome.report) == "no passes"


def test_what_must_change_something_says_so_when_it_cannot(graph: Graph) -> None:
    with pytest.raises(PassError, match="Compress was asked for and could change nothing"):
        PassManager([Compress()]).run(graph)


def test_a_pattern_that_matches_nothing_gives_its_reasons() -> None:
    class Scale(RewritePattern):
        def pattern(self, x: Any, w: Any, s: Any) -> Any:
            return ops.mul(ops.linear(x, w), s)

        def rewrite(self, rewriter: Rewriter, x: Value) -> Any:
            return x

    graph = build(lambda b, x: b.mul(b.relu(x), b.tanh(x)), (2, 3))
    with pytest.raises(PassError, match=r"(?s)Scale was asked for.*%mul = mul.*is relu, not linear \(%relu: f32"):
        PassManager([Scale()]).run(graph)


def test_a_malformed_result_names_the_pass(graph: Graph) -> None:
    with pytest.raises(VerifyError, match="after Break: "):
        PassManager([Break()]).run(graph)
    assert PassManager([Break()], verify=False).run(graph).report.passes[0].modified


def test_a_malformed_input_is_refused(graph: Graph) -> None:
    graph.operations.reverse()
    with pytest.raises(VerifyError):
        PassManager([Nothing()]).run(graph)


def test_a_lie_about_modified_is_found(graph: Graph) -> None:
    with pytest.raises(InternalError, match="Lie says modified=False"):
        PassManager([Lie()], check_unmodified=True).run(graph)


def test_the_context_reaches_every_pass(graph: Graph) -> None:
    item = Remember([])
    PassManager([item]).run(graph, Context(seed=7))
    assert item.seen[0].seed == 7
    item(graph)
    assert item.seen[1] == Context()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("FoldBatchNorm", "got str: 'FoldBatchNorm'"),
        (Nothing, r"pass an instance, Nothing\(\)"),
        (AbsToRelu, r"pass an instance, AbsToRelu\(\)"),
    ],
)
def test_what_is_no_pass_is_refused(item: Any, message: str) -> None:
    with pytest.raises(PassError, match=message):
        PassManager([item])


def test_a_pass_must_be_a_frozen_dataclass() -> None:
    class Plain(Pass):
        def run(self, graph: Graph, context: Context) -> PassResult:
            return PassResult(graph, False)

    with pytest.raises(PassError, match="Plain must be a frozen dataclass"):
        PassManager([Plain()])


def test_dumps_go_to_a_folder_as_graphs_that_parse(graph: Graph, tmp_path: Path) -> None:
    outcome = PassManager([DeadCodeElimination(), AbsToRelu()], dump=tmp_path / "ir").run(graph)
    files = sorted(path.name for path in (tmp_path / "ir").iterdir())
    assert files == ["00-input.txt", "01-DeadCodeElimination.txt", "02-AbsToRelu.txt"]
    last = (tmp_path / "ir" / files[-1]).read_text()
    assert print_graph(parse_graph(last, graph_tensors(outcome.graph))) == print_graph(outcome.graph)


def test_dumps_go_to_a_callable(graph: Graph) -> None:
    stages: list[tuple[str, str]] = []
    PassManager([AbsToRelu()], dump=lambda stage, item: stages.append((stage, print_graph(item)))).run(graph)
    assert [stage for stage, _ in stages] == ["00-input", "01-AbsToRelu"]
    assert "= abs(" in stages[0][1] and "= abs(" not in stages[1][1]


@pytest.mark.parametrize("name", sorted(passes.CATALOGUE))
def test_the_catalogue_is_importable_and_frozen(name: str) -> None:
    item = getattr(passes, name)
    assert issubclass(item, Pass) and item.__name__ == name
    assert item.__dataclass_params__.frozen
    assert name in dir(passes) and name in passes.__all__


def test_every_public_name_exists() -> None:
    for name in passes.__all__:
        assert getattr(passes, name) is not None


def test_an_unknown_pass_names_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="FoldBatchNorm"):
        passes.FoldBatchNrom  # noqa: B018


def test_the_package_has_one_name() -> None:
    import runpy

    root = Path(passes.__file__).parent
    with pytest.raises(ImportError, match=r"whet\.passes"):
        runpy.run_path(str(root / "__init__.py"), run_name="passes")


def test_what_a_pass_draws_depends_on_the_seed_alone() -> None:
    @dataclass(frozen=True)
    class Draw(Pass):
        """Keeps a random number."""

        drawn: ClassVar[list[float]] = []

        def run(self, graph: Graph, context: Context) -> PassResult:
            self.drawn.append(float(torch.rand(())))
            return PassResult(graph, False)

    before = torch.get_rng_state()
    for seed in (0, 0, 1):
        PassManager([Draw()]).run(Graph(), Context(seed=seed))
    assert Draw.drawn[0] == Draw.drawn[1] != Draw.drawn[2]
    assert torch.equal(torch.get_rng_state(), before)
