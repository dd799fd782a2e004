"""The names that users give to symbolic dimensions, torch.export.Dim("batch"), and names for those without one."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final

import sympy
import torch
from torch.fx import Node

# What the grammar of dimensions knows as functions (whet.ir.dimensions).
_FUNCTIONS: Final = frozenset({"max", "min"})
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_]")


class DimensionNames:
    """A name for each of torch's symbols, none of them twice.

    A symbol is called what its `Dim` is called, or what the `Dim` is called that others derive from: "batch" for
    `Dim("batch")` and `2 * Dim("batch")`. Torch takes every Python identifier, the text form ASCII ones: other
    characters become "_", and what the text form reads as a word of its own gets a "_" at its end. A symbol that stands
    for a quarter of what the user has named is "batch_over_4"; a name that is taken gets a number ("batch_1"). Those
    without a name (Dim.AUTO, a program from a file, where torch keeps none) are s0, s1, ... as far as these are free.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._given = _given_names(shape_environment(nodes))
        self._taken: set[str] = set()

    def name(self, item: sympy.Symbol, divisor: int = 1) -> str:
        """For the dimension `item`, or the part of it that times `divisor` makes it. To be asked once for each."""
        given = self._given.get(item)
        if given is None:
            free: Iterator[str] = (f"s{number}" for number in count())
            kept = self._taken | set(self._given.values())
        else:
            free = _variants(given if divisor == 1 else f"{given}_over_{divisor}")
            kept = self._taken
        chosen = next(name for name in free if name not in kept)
        self._taken.add(chosen)
        return chosen


def shape_environment(nodes: Iterable[Node]) -> Any:
    """What torch noted of sizes while it traced a program; None where no input was traced."""
    for node in nodes:
        value: Any = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, torch.Tensor) and hasattr(value, "fake_mode"):
            return value.fake_mode.shape_env
    return None


def _given_names(environment: Any) -> dict[sympy.Symbol, str]:
    """The user's names by torch's symbols. torch keeps them by the source of a size ("L['x'].size()[0]"), together with
    expressions such as "2*half" for sizes that are derived; the root of these is a source under its own name.
    """
    if environment is None:
        return {}
    variables: Mapping[str, sympy.Symbol] = environment.source_to_var
    named = [(source, name) for source, name in environment.source_name_to_debug_name.items() if source in variables]
    roots = [(source, source) for source in variables if source.isidentifier()]
    found: dict[sympy.Symbol, str] = {}
    for source, name in (*named, *roots):
        # An equation with another size may have replaced the variable.
        factor, item = environment.replace(variables[source]).as_coeff_Mul()
        if name.isidentifier() and item.is_Symbol and factor.is_Integer:
            found.setdefault(item, _written(name) if factor == 1 else f"{_written(name)}_over_{factor}")
    return found


def _written(name: str) -> str:
    """As the text form can write it."""
    ascii_name = _FOREIGN.sub("_", name)
    return f"{ascii_name}_" if keyword.iskeyword(ascii_name) or ascii_name in _FUNCTIONS else ascii_name


def _variants(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in count(1))
