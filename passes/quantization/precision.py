"""16-bit floating point: weights and activations stored in half the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch

from whet.errors import PassError
from whet.ir.builder import Builder
from whet.ir.definition import InferError
from whet.ir.graph import Graph, Operation, Value
from whet.ir.types import DType
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import DeadCodeElimination
from whet.passes.fold_batch_norm import FoldBatchNorm
from whet.passes.materialize import MaterializeWeights
from whet.passes.selection import excluded, require_matches

_TYPES: Final = {"bf16": DType.BF16, "f16": DType.F16}
# What changes type itself, or whose f32 operands are parameters of integers.
_KEPT: Final = frozenset({"constant", "cast", "quantize", "dequantize", "requantize", "fake_quantize"})


@dataclass(frozen=True)
class ConvertPrecision(Pass):
    """f32 operations on bf16 or f16: inputs and outputs of the graph, and its state, stay f32.

    Weights are rounded once; a number beyond f16's range becomes its largest one (masks of -3.4e38 must not give
    -inf - -inf). Sums of products, reductions, normalizations and softmax accumulate in f32 and round once (numerics:
    R5). Batch norms are folded first (Kalamkar et al., arXiv:1905.12322; Micikevicius et al., ICLR 2018).

    Args:
        dtype: "bf16" or "f16".
        exclude: patterns (fnmatch) of module paths that stay in f32.

    Raises PassError for another dtype and for a pattern that fits nothing.
    """

    dtype: str = "bf16"
    exclude: tuple[str, ...] = ()
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Each converted operation counts as one change."""
        if self.dtype not in _TYPES:
            raise PassError(f"dtype is {self.dtype!r}; it must be one of {', '.join(_TYPES)}")
        for item in _PREPARATION:
            graph = item.run(graph, context).graph
        require_matches("exclude", self.exclude, (operation.location.module for operation in graph.operations))
        clone = graph.clone()
        chosen = [item for item in clone.operations if item.name not in _KEPT and not excluded(item, self.exclude)]
        count = _Converter(clone, _TYPES[self.dtype]).run(set(chosen))
        if not count:
            return PassResult(graph, False)
        return PassResult(DeadCodeElimination().run(clone, context).graph, True, {"operation converted": count})


_PREPARATION: Sequence[Pass] = (MaterializeWeights(), FoldBatchNorm(expand=False))


class _Converter:
    """Edits a private clone: beside each chosen operation its twin, and casts where the two worlds meet."""

    def __init__(self, graph: Graph, dtype: DType) -> None:
        self.graph = graph
        self.dtype = dtype
        self.builder = Builder(graph)
        self.narrow: dict[Value, Value] = {}
        self.wide: dict[Value, Value] = {}

    def run(self, chosen: set[Operation]) -> int:
        count = 0
        for operation in list(self.graph.operations):
            self.builder.before, self.builder.location = operation, operation.location
            if operation in chosen and self._convert(operation):
                count += 1
            else:
                self._keep(operation)
        self.builder.before = None
        self.graph.outputs = [self._widened(value) for value in self.graph.outputs]
        for slot in self.graph.state:
            slot.output = self._widened(slot.output)
        return count

    def _convert(self, operation: Operation) -> bool:
        """The twin on narrow operands; False where it has no f32 to narrow, or does not take narrow operands."""
        if not any(value.type.dtype is DType.F32 for value in operation.results):
            return False
        operands = operation.operands
        if not any(value is not None and value.type.dtype is DType.F32 for value in operands):
            return False
        wanted = [None if v is None else self._type_of(v) for v in operands]
        types = [
            None if v is None or dtype is None else type(v.type)(v.type.shape, dtype)
            for v, dtype in zip(operands, wanted, strict=True)
        ]
        try:
            results = operation.definition.result_types(types, operation.attributes)
        except InferError:
            return False
        if any(type.dtype is DType.F32 for type in results):
            return False
        narrow = [None if value is None else self._narrowed(value) for value in operands]
        twin = self.builder.emit(operation.name, narrow, operation.attributes, operation.results[0].name)
        self.narrow.update(zip(operation.results, twin.results, strict=True))
        return True

    def _type_of(self, value: Value) -> DType:
        return self.dtype if value.type.dtype is DType.F32 else value.type.dtype

    def _keep(self, operation: Operation) -> None:
        for index, value in enumerate(operation.operands):
            if value is not None and value in self.narrow and value.producer is not None:
                operation.set_operand(index, self._widened(value))

    def _narrowed(self, value: Value) -> Value:
        if value.type.dtype is not DType.F32:
            # integers and bools that a converted operation made
            return self.narrow.get(value, value)
        if value not in self.narrow:
            self.narrow[value] = self._constant(value) or self.builder.cast(
                value, dtype=self.dtype, name_hint=f"{value.name}.{self.dtype.value}"
            )
            self.wide[value] = value
        return self.narrow[value]

    def _constant(self, value: Value) -> Value | None:
        if value.constant is None or value.producer is None:
            return None
        limits = torch.finfo(self.dtype.torch)
        tensor = value.constant
        held = torch.where(torch.isfinite(tensor), tensor.clamp(limits.min, limits.max), tensor)
        key = value.producer.attributes["key"]
        return self.builder.constant(held.to(self.dtype.torch), f"{key}.{self.dtype.value}" if key else "")

    def _widened(self, value: Value) -> Value:
        """`value` in its own type, for what stays."""
        if value not in self.narrow or value in self.wide:
            return self.wide.get(value, value)
        narrow = self.narrow[value]
        same = narrow.type.dtype is value.type.dtype
        self.wide[value] = narrow if same else self.builder.cast(narrow, dtype=value.type.dtype)
        return self.wide[value]
