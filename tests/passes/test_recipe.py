"""Recipes: TOML to passes and back, and what is said of mistakes in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whet import passes
from whet.errors import PassError
from whet.ir.graph import Graph
from whet.ir.types import DType
from whet.passes import Recipe, format_recipe, parse_recipe, read_recipe
from whet.passes.base import Context, Pass, PassResult
from whet.passes.pruning.importance import Taylor
from whet.passes.quantization.adaround import AdaRound

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


@dataclass(frozen=True)
class EveryKind(Pass):
    """One option of each type that a recipe can hold."""

    flag: bool = False
    count: int | None = 7
    share: float = 0.5
    name: str = "a"
    names: tuple[str, ...] = ()
    pairs: tuple[tuple[str, int], ...] = ()
    table: Mapping[str, float] = field(default_factory=dict)
    dtype: DType | None = None
    anything: Any = None

    def run(self, graph: Graph, context: Context) -> PassResult:
        return PassResult(graph, False)


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
numbers = st.floats(allow_nan=False, width=64)
every_kind = st.builds(
    EveryKind,
    flag=st.booleans(),
    count=st.none() | st.integers(-(2**62), 2**62),
    share=numbers,
    name=texts.filter(lambda text: text != "none"),
    names=st.lists(texts, max_size=3).map(tuple),
    pairs=st.lists(st.tuples(texts, st.integers(0, 9)), max_size=3).map(tuple),
    table=st.dictionaries(texts, numbers, max_size=3).filter(lambda table: not {"type", "import"} & set(table)),
    dtype=st.none() | st.sampled_from(list(DType)),
)


@given(st.lists(every_kind, max_size=3), st.none() | st.integers(0, 2**31))
def test_every_option_comes_back(items: list[EveryKind], seed: int | None) -> None:
    recipe = Recipe(tuple(items), seed=seed)
    assert parse_recipe(format_recipe(recipe)) == recipe


def test_every_pass_of_the_catalogue_comes_back() -> None:
    needed: dict[str, dict[str, Any]] = {"MixedPrecision": {"size": 0.5}}
    made = tuple(getattr(passes, name)(**needed.get(name, {})) for name in passes.CATALOGUE)
    assert parse_recipe(format_recipe(Recipe(made))) == Recipe(made)


def test_passes_in_passes_functions_and_importances() -> None:
    recipe = Recipe(
        (
            passes.StructuredPruning(
                criterion=Taylor(batches=3),
                budget=passes.Budget("flops", 0.5),
                recovery=passes.FineTune(epochs=2, loss=torch.nn.functional.cross_entropy),
            ),
            passes.QuantizeWeights(rounding=AdaRound()),
        ),
        calibration="data:batches",
        objective="accuracy",
    )
    text = format_recipe(recipe)
    assert parse_recipe(text) == recipe
    assert 'import = "torch.nn.functional:cross_entropy"' in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[", "not TOML"),
        ("x = 1", "unknown key 'x'"),
        ("seed = 'a'", "seed must be of type int"),
        ("seed = true", "seed must be of type int"),
        ("passes = 3", "array of tables"),
        ("[[passes]]\nbits = 3", "has no type"),
        ("[[passes]]\ntype = 'QuantizeStatik'", "did you mean 'QuantizeStatic'"),
        ("[[passes]]\ntype = 'QuantizeStatic'\nbit = 3", r"passes\[0\]: .* no option 'bit' \(did you mean 'bits'"),
        ("[[passes]]\ntype = 'QuantizeStatic'\nbits = 'x'", r"passes\[0\].bits is 'x'; it must be int"),
        ("[[passes]]\ntype = 'QuantizeStatic'\nbits = true", "it must be int"),
        ("[[passes]]\ntype = 'QuantizeStatic'\nexclude = [1]", "it must be tuple"),
        ("[[passes]]\ntype = 'QuantizeStatic'\nactivation_dtype = 'i9'", "it is one of f64"),
        ("[[passes]]\ntype = 'StructuredPruning'\nbudget = {type = 'Budget'}", "missing 2 required"),
        ("[[passes]]\ntype = 'Budget'\nkind = 'flops'\namount = 0.5", "is a Budget, not a pass"),
        ("[[passes]]\ntype = 'no.such.module:Thing'", "there is no module 'no.such.module'"),
        ("[[passes]]\ntype = 'whet.passes:Nothing'", "Nothing"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        parse_recipe(text)


def test_the_recipe_in_the_documentation_is_one() -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    recipe = parse_recipe(text)
    assert [type(item).__name__ for item in recipe.passes] == ["StructuredPruning", "QuantizeStatic"]
    assert parse_recipe(format_recipe(recipe)) == recipe


def test_a_lambda_cannot_be_written() -> None:
    with pytest.raises(PassError, match=r"FineTune\.loss cannot be written"):
        format_recipe(Recipe((passes.FineTune(loss=lambda outputs, labels: outputs.sum()),)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PassError, match=r"nothing\.toml"):
        read_recipe(tmp_path / "nothing.toml")
    (tmp_path / "bad.toml").write_text("passes = 3")
    with pytest.raises(PassError, match=r"bad\.toml: passes must be"):
        read_recipe(tmp_path / "bad.toml")
