"""What the patterns of this package need to know of elementwise operations."""

from __future__ import annotations

from typing import Final

from whet.ir.graph import Value
from whet.ir.ops import CATALOGUE
from whet.ir.ops.elementwise import Elementwise
from whet.passes.rewrite.pattern import AnyOf, Node, OpNode

ELEMENTWISE: Final = tuple(name for name, definition in CATALOGUE.items() if isinstance(definition, Elementwise))

_LARGEST_COMPARED = 1 << 16


def any_elementwise(operands: Node) -> AnyOf:
    """Any elementwise operation, all of its operands as one name."""
    return AnyOf(*(OpNode(name, (operands,)) for name in ELEMENTWISE))


def filled_with(value: Value, number: float) -> bool:
    """Whether `value` is a (small) constant whose elements all equal `number`."""
    tensor = value.constant
    if tensor is None or tensor.numel() > _LARGEST_COMPARED:
        return False
    return bool((tensor == number).all())
