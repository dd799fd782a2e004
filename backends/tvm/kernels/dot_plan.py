"""What contractions by dot instruction have in common: the plan, the channels in groups, one product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import te, tirx

from whet.backends.tvm.intrinsics.instructions import DotInstruction, reading
from whet.backends.tvm.kernels.contraction import Product, accumulate
from whet.backends.tvm.kernels.expressions import Dimension, Expression, extent
from whet.backends.tvm.kernels.integer import recoding_offset
from whet.backends.tvm.kernels.tiles import Tile
from whet.backends.tvm.kernels.windows import floordiv

BFLOAT = "bfloat16"


@dataclass(frozen=True)
class DotPlan:
    """What packing, compensation and expression of a contraction by dot instruction must agree on.

    `source` is the dtype of the activations; `channels` those that one group reads, rounded up to whole
    groups of the instruction. `unrolled` says that the taps of the last spatial axis are channels of a copy.
    """

    tile: Tile
    groups: int
    instruction: DotInstruction
    source: str
    channels: Dimension
    unrolled: bool = False

    @property
    def block(self) -> int:
        """Output columns in one packed block of the weight."""
        return self.tile.block

    @property
    def offset(self) -> int:
        """What is added to every activation for the instruction's signedness."""
        return recoding_offset(self.source, self.instruction)

    @property
    def recipe(self) -> str:
        """Text that is equal for plans which pack a weight alike."""
        instruction = self.instruction
        sizes = f"{self.block},{self.groups},{self.channels},{instruction.group},{instruction.weight}"
        return f"[{sizes},unrolled]" if self.unrolled else f"[{sizes}]"


def dot_term(item: Expression, factor: Expression, plan: DotPlan) -> Expression:
    """One product, in the words of the tensor intrinsic's description (`whet.backends.tvm.intrinsics.dot_product`)."""
    left, right = (_widened(value, plan.instruction) for value in (item, factor))
    return left * right


def _widened(value: Expression, instruction: DotInstruction) -> Expression:
    if not instruction.is_float or str(value.dtype) == BFLOAT:
        return value.astype(instruction.total)
    bits = tirx.shift_left(value.astype("uint32"), tirx.const(16, "uint32"))
    return tirx.reinterpret("float32", bits)


def dot_sums(
    batch: Sequence[Dimension],
    rows: Sequence[Dimension],
    columns: Dimension,
    reduction: Sequence[tirx.IterVar],
    product: Product,
    plan: DotPlan,
    source: te.Tensor,
    name: str,
    flattened: int = 1,
) -> te.Tensor:
    """See `accumulate`; activations come out of `source`: bf16 numbers, or their bits."""
    instruction = plan.instruction
    if instruction.is_float:
        instruction = reading(instruction, str(source.dtype))
    return accumulate(
        batch,
        rows,
        columns,
        reduction,
        product,
        plan.tile,
        name=name,
        flattened=flattened,
        dot=instruction.group,
        intrinsic=instruction.intrinsic,
    )


class ChannelAxes:
    """The reduction over input channels: one axis, or groups and the elements of a group."""

    def __init__(self, plan: DotPlan) -> None:
        self._plan = plan
        group = plan.instruction.group
        outer = te.reduce_axis((0, floordiv(plan.channels, group)), "ic")
        self.axes: list[tirx.IterVar] = [outer]
        self.channel: Expression = outer.var
        if group > 1:
            inner = te.reduce_axis((0, group), "q")
            self.axes.append(inner)
            self.channel = outer.var * group + inner.var

    def weight_index(self, column: Expression, taps: Sequence[Expression]) -> list[Expression]:
        """Index into the packed weight for an output column and kernel taps."""
        block = self._plan.block
        lane = tirx.floormod(column, block)
        last = [lane] if len(self.axes) == 1 else [lane, self.axes[1].var]
        return [tirx.floordiv(column, block), *taps, self.axes[0].var, *last]


def rounded_up(value: int, step: int) -> int:
    """The least multiple of `step` that is not below `value`."""
    return -(-value // step) * step


def same_extent(left: Dimension, right: Dimension) -> bool:
    """Whether two extents are known to be equal."""
    return extent(left) is not None and extent(left) == extent(right)


def shifted(value: Expression, dtype: str, shift: int) -> Expression:
    """A number in the dtype that the instruction takes, with `shift` added on the way; the bits of a bf16 one."""
    if str(value.dtype) == BFLOAT:
        return tirx.reinterpret(dtype, value)
    if shift == 0:
        return value.astype(dtype)
    return (value.astype("int16") + tirx.const(shift, "int16")).astype(dtype)
