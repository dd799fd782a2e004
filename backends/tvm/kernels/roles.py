"""How a tensor expression tells the scheduler what each of its stages is for.

`te.compute(..., attrs=...)` becomes an annotation of the block of the same name, and the rules in
`whet.backends.tvm.schedule` read nothing else: no rule looks at the name of an operation.

- `ROLE` is on every stage that is not plain element-wise work:
    - `ANCHOR`: the one stage that holds the arithmetic; `KIND` says which rule knows it.
    - `STAGE`: a copy (padding, packing) that must be materialized before the anchor reads it. With `FOLDED` its readers
      go on from one line to the next: the two axes before its last one become one.
  A stage without a role is element-wise: the rules inline it.
- A contraction anchor (`KIND` is `CONTRACTION`) iterates over `[*batch, *rows, column, *reduction]`; its rows
  and its columns are padded to whole tiles. `ROWS` lists the tile extent of each row axis, `BLOCK` that of
  the column axis, `FLATTENED` how many axes of the output the last row axis stands for. `DOT` says how many
  elements one instruction consumes (1: multiply and add), which is the extent of the last reduction axis;
  `INTRINSIC` names the tensor intrinsic of that instruction.
- A depthwise anchor (`KIND` is `DEPTHWISE`) iterates over `[batch, *spatial, channel, *kernel]`; `ROWS`,
  `BLOCK` and `INTRINSIC` as above.
- A product for GPUs (`KIND` is `TENSOR_CORE` or `THREAD_TILES`) iterates over `[group, row, column, k]`, all but the
  groups padded to whole tiles. It reads two `OPERAND` stages, whose `VECTOR` says how many elements along k a thread
  copies at once, and `BY_LINES` whether neighbours in memory lie across k instead. `TILE` is [rows, columns, depth]
  of a block, `ACROSS` how many warps (threads) share its rows and columns, `TYPES` are those of the operands, `DOT` as
  above, `ASYNCHRONOUS` says whether copies may overlap with arithmetic (they fill in zeros only), and `DECLINED` is
  the plans that did not fit, with their reasons.
"""

from __future__ import annotations

from collections.abc import Sequence

ROLE = "whet.role"
KIND = "whet.kind"
FOLDED = "whet.folded"
ROWS = "whet.rows"
BLOCK = "whet.block"
FLATTENED = "whet.flattened"
DOT = "whet.dot"
INTRINSIC = "whet.intrinsic"
TILE = "whet.tile"
ACROSS = "whet.across"
TYPES = "whet.types"
VECTOR = "whet.vector"
BY_LINES = "whet.by_lines"
ASYNCHRONOUS = "whet.asynchronous"
DECLINED = "whet.declined"

ANCHOR = "anchor"
STAGE = "stage"
OPERAND = "operand"

CONTRACTION = "contraction"
DEPTHWISE = "depthwise"
TENSOR_CORE = "tensor_core"
THREAD_TILES = "thread_tiles"

Attributes = dict[str, str | int | list[int] | list[str]]


def stage(folded: bool = False) -> Attributes:
    """Annotations of a copy that is computed before the anchor; `folded`: two of its axes are to be one."""
    return {ROLE: STAGE, FOLDED: 1} if folded else {ROLE: STAGE}


def contraction(
    rows: Sequence[int], block: int, flattened: int = 1, dot: int = 1, intrinsic: str | None = None
) -> Attributes:
    """Annotations of a contraction anchor (see the module's text for the meaning of each number)."""
    attributes: Attributes = {
        ROLE: ANCHOR,
        KIND: CONTRACTION,
        ROWS: list(rows),
        BLOCK: block,
        FLATTENED: flattened,
        DOT: dot,
    }
    if intrinsic is not None:
        attributes[INTRINSIC] = intrinsic
    return attributes


def depthwise(rows: Sequence[int], block: int, intrinsic: str | None = None) -> Attributes:
    """Annotations of a depthwise anchor: a tile of `rows` outputs by `block` channels."""
    attributes: Attributes = {ROLE: ANCHOR, KIND: DEPTHWISE, ROWS: list(rows), BLOCK: block}
    if intrinsic is not None:
        attributes[INTRINSIC] = intrinsic
    return attributes


def operand(vector: int, by_lines: bool) -> Attributes:
    """Annotations of a product's operand, of which a thread copies `vector` elements at once."""
    return {ROLE: OPERAND, VECTOR: vector, BY_LINES: int(by_lines)}


def gpu_product(
    kind: str,
    tile: Sequence[int],
    across: Sequence[int],
    types: Sequence[str],
    dot: int,
    asynchronous: bool,
    declined: Sequence[str],
) -> Attributes:
    """Annotations of a product for GPUs (see the module's text for the meaning of each)."""
    return {
        ROLE: ANCHOR,
        KIND: kind,
        TILE: list(tile),
        ACROSS: list(across),
        TYPES: list(types),
        DOT: dot,
        ASYNCHRONOUS: int(asynchronous),
        DECLINED: list(declined),
    }
