"""Pattern nodes for every operation of the IR: `ops.mul(ops.linear(x, w), s)`, `ops.softmax(x, axis=1)`.

Operands are patterns, None (must be absent) or numbers (match a constant scalar of that value); an optional
operand that is not written must be absent too. An attribute that is not written may have any value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from whet.ir.ops import CATALOGUE
from whet.passes.rewrite.pattern import Node, OpNode, as_node


def __getattr__(name: str) -> Callable[..., OpNode]:
    """The maker of nodes for the operation `name`."""
    if name not in CATALOGUE:
        raise AttributeError(f"there is no operation {name!r} to match")
    known = CATALOGUE[name].signature.attribute_names

    def node(*operands: Node | float | None, **attributes: Any) -> OpNode:
        unknown = set(attributes) - set(known)
        if unknown:
            raise TypeError(f"{name} has no attribute(s) {sorted(unknown)}; it has {list(known)}")
        return OpNode(name, tuple(as_node(operand) for operand in operands), attributes)

    return node


def __dir__() -> list[str]:
    return sorted(CATALOGUE)
