"""Passes of other packages: found by entry point, and refused where a name is taken."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.passes.equality import assert_same_results, build, count, weight
from whet.errors import PassError
from whet.passes import PassManager, available, find

MODULE = '''
from whet.passes import MatchFailure, RewritePattern, ops

class FoldScaleIntoLinear(RewritePattern):
    """linear(x, w) * s  ->  linear(x, w * s)."""
    def pattern(self, x, w, s):
        return ops.mul(ops.linear(x, w), s)
    def rewrite(self, rewriter, x, w, s):
        if w.constant is None or s.constant is None:
            raise MatchFailure("weight and scale must be constants", w, s)
        return rewriter.linear(x, rewriter.constant(w.constant * s.constant))

NOT_A_PASS = 3
'''

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution with entry points on the path, as pip would."""
    modules = set(sys.modules)

    def make(distribution: str, **entry_points: str) -> None:
        root = tmp_path / distribution
        info = root / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {target}" for name, target in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[whet.passes]", *lines, ""]))
        (root / f"{distribution}_passes.py").write_text(MODULE)
        monkeypatch.syspath_prepend(str(root))

    yield make
    for name in set(sys.modules) - modules:
        if name.endswith("_passes"):
            del sys.modules[name]


def test_the_pass_of_another_package_is_found_and_works(install: Install) -> None:
    install("acme", FoldScaleIntoLinear="acme_passes:FoldScaleIntoLinear")
    assert available()["FoldScaleIntoLinear"] == "acme_passes:FoldScaleIntoLinear"
    assert "acme_passes" not in sys.modules, "listing passes must not import them"
    graph = build(lambda b, x: b.mul(b.linear(x, b.constant(weight(4, 3)), None), 0.5), (2, 3))
    outcome = PassManager([find("FoldScaleIntoLinear")()]).run(graph)
    assert count(outcome.graph)["mul"] == 0
    assert_same_results(graph, outcome.graph)


def test_own_passes_are_found_by_name() -> None:
    assert find("FoldBatchNorm").__name__ == "FoldBatchNorm"
    assert available()["AssignLayout"] == "whet.passes.layout:AssignLayout"


def test_an_unknown_name_lists_the_known_ones(install: Install) -> None:
    install("acme", Sharpen="acme_passes:FoldScaleIntoLinear")
    with pytest.raises(PassError, match=r"no pass 'FoldBatchnorm'; there are .*FoldBatchNorm.*Sharpen"):
        find("FoldBatchnorm")


def test_a_name_of_our_own_is_refused(install: Install) -> None:
    install("acme", FoldBatchNorm="acme_passes:FoldScaleIntoLinear")
    for use in (available, lambda: find("Canonicalize")):
        with pytest.raises(PassError, match=r"acme 1\.0 declares the pass 'FoldBatchNorm'"):
            use()


def test_two_packages_with_one_name_are_refused(install: Install) -> None:
    install("acme", Sharpen="acme_passes:FoldScaleIntoLinear")
    install("other", Sharpen="other_passes:FoldScaleIntoLinear")
    with pytest.raises(PassError, match=r"(acme|other) 1\.0 and (acme|other) 1\.0 both declare the pass 'Sharpen'"):
        find("Sharpen")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("acme_passes:NOT_A_PASS", "pass 'Sharpen' is 3, not a subclass"),
        ("acme_passes:Missing", r"'Sharpen' of acme 1\.0 cannot be imported"),
        ("nowhere_to_be_found:Missing", r"'Sharpen' of acme 1\.0 cannot be imported"),
    ],
)
def test_what_cannot_be_loaded_names_the_package(install: Install, target: str, message: str) -> None:
    install("acme", Sharpen=target)
    with pytest.raises(PassError, match=message):
        find("Sharpen")
