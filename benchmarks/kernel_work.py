"""What each kernel of a compiled module has to do: operations, bytes, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from benchmarks.peaks import BF16, F32, INT8

if TYPE_CHECKING:
    from whet.backends.base import CompiledModule
    from whet.backends.tvm.regions import Region
    from whet.ir.graph import Value

_PRECISIONS: Final[Mapping[str, str]] = MappingProxyType({"i8": INT8, "u8": INT8, "i4": INT8, "bf16": BF16})


@dataclass(frozen=True)
class KernelWork:
    """One call of a kernel.

    Attributes:
        operations: names of what it computes, in order.
        module: path in the model of the first of them.
        precision: of its multiply-adds.
        flops: operations of one call; a multiply-add is two.
        moved: bytes that have to be read and written: inputs, weights and results, each once.
    """

    operations: tuple[str, ...]
    module: str
    precision: str
    flops: float
    moved: float


def work_of(compiled: CompiledModule) -> list[KernelWork]:
    """The kernels' work, in the order in which the module calls them.

    Raises TypeError for symbolic dimensions: how much work there is depends on them.
    """
    from whet.backends.tvm.emit import kernel_regions
    from whet.ir.target import get_target

    regions = kernel_regions(compiled.graph, get_target(compiled.target.name))
    return [_work(region) for region in regions if not region.is_view]


def _work(region: Region) -> KernelWork:
    first = region.operations[0]
    return KernelWork(
        tuple(operation.name for operation in region.operations),
        first.location.module,
        _precision(region),
        sum(float(operation.definition.cost(operation).flops) for operation in region.operations),
        sum(_bytes(value) for value in (*region.inputs, *region.results)),
    )


def _precision(region: Region) -> str:
    anchor = region.anchor or region.operations[0]
    source = next((value for value in anchor.operands if value is not None), None)
    return F32 if source is None else _PRECISIONS.get(source.type.dtype.value, F32)


def _bytes(value: Value) -> float:
    return float(value.type.numel) * value.type.dtype.bits / 8
