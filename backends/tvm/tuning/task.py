"""The kernels of a graph that have something to choose, with what it takes to measure them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tvm

from whet.backends.manifest import stored_dtype, to_raw
from whet.backends.tvm.emit import Schedule, express, kernel_regions
from whet.backends.tvm.kernels.decisions import DIRECT, Decision
from whet.backends.tvm.kernels.tiles import Tile
from whet.backends.tvm.lowering.context import Packing
from whet.backends.tvm.regions import Region
from whet.backends.tvm.workload import workload_text
from whet.ir.graph import Graph, Value
from whet.ir.target import Target
from whet.ir.types import DType
from whet.runtime.safetensors import RawTensor


@dataclass(frozen=True)
class Kernel:
    """A scheduled kernel and what to call it with.

    Attributes:
        function: TVM's JSON of it.
        arguments: inputs and packed weights, in order.
        weights: which of them are weights.
        outputs: (Whet's dtype, shape) of each result.
    """

    function: str
    arguments: list[RawTensor]
    weights: list[int]
    outputs: list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Task:
    """One workload of a graph.

    Attributes:
        text: what it computes (`workload_text`).
        region: the first region that computes it.
        count: how many do.
        space: algorithm -> tiles that it may have, the best first by the model.
        operations: of one call.
    """

    text: str
    region: Region
    count: int
    space: dict[str, list[Tile]]
    operations: int

    @property
    def name(self) -> str:
        """Operations and the type of the result."""
        names = [operation.name for operation in self.region.operations]
        return f"{'+'.join(dict.fromkeys(names))[:40]} {self.region.results[0].type}"

    @property
    def precision(self) -> str:
        """Of its multiplications: "integer" or "float"."""
        return "integer" if any("integer" in operation.name for operation in self.region.operations) else "float"

    def kernel(self, target: Target, schedule: Schedule, decision: Decision) -> Kernel:
        """The kernel that a decision makes, on the model's weights and random inputs."""
        expressed = express(self.region, target, decision)
        function = expressed.function(schedule)
        module = tvm.IRModule({"main": function})
        sources = expressed.sources
        return Kernel(
            tvm.ir.save_json(module),
            [_argument(source, index) for index, source in enumerate(sources)],
            [index for index, source in enumerate(sources) if _is_constant(source)],
            [(stored_dtype(value.type.dtype), value.type.static_shape) for value in self.region.results],
        )


def find_tasks(
    graph: Graph, target: Target, on_region: Callable[[int, int], None]
) -> tuple[list[Task], dict[str, str]]:
    """What can be tuned in a prepared graph, and why the other contractions cannot."""
    groups: dict[str, list[Region]] = {}
    for region in kernel_regions(graph, target):
        if not region.is_view:
            groups.setdefault(workload_text(region), []).append(region)
    tasks: list[Task] = []
    untuned: dict[str, str] = {}
    for index, (text, regions) in enumerate(groups.items()):
        on_region(index, len(groups))
        first = regions[0]
        if _is_symbolic(first):
            if first.anchor is not None and first.anchor.name in _CONTRACTIONS:
                untuned[first.anchor.name] = "it has symbolic dimensions: bind them (BindDimensions) to tune it"
            continue
        space = _space(first, target)
        if sum(map(len, space.values())) > 1:
            operations = sum(int(item.definition.cost(item).flops) for item in first.operations)
            tasks.append(Task(text, first, len(regions), space, operations))
    return tasks, untuned


_CONTRACTIONS = frozenset({"linear", "conv", "matmul", "linear_integer", "conv_integer", "matmul_integer"})


def _space(region: Region, target: Target) -> dict[str, list[Tile]]:
    """What there is to choose, asked of the lowering itself, once for every algorithm."""
    default = express(region, target).target
    space = {(default.algorithms or [DIRECT])[0]: default.tiles}
    for algorithm in default.algorithms[1:]:
        space[algorithm] = express(region, target, Decision(algorithm=algorithm)).target.tiles
    return space


def _is_symbolic(region: Region) -> bool:
    values = [*region.inputs, *region.results]
    return any(not isinstance(dim, int) for value in values for dim in value.type.shape)


def _is_constant(source: Value | Packing) -> bool:
    return isinstance(source, Packing) or source.constant is not None


def _argument(source: Value | Packing, seed: int) -> RawTensor:
    tensor = source.tensor if isinstance(source, Packing) else source.constant
    if tensor is None:
        assert isinstance(source, Value)
        tensor = _random(source, seed)
    raw: Any = to_raw(tensor)
    return raw if isinstance(raw, RawTensor) else RawTensor(stored_dtype(DType.of(tensor.dtype)), raw)


def _random(value: Value, seed: int) -> torch.Tensor:
    """What an activation may hold: all codes of an integer, normal numbers of a float."""
    generator = torch.Generator().manual_seed(seed)
    dtype, shape = value.type.dtype, value.type.static_shape
    if dtype is DType.BOOL:
        return torch.rand(shape, generator=generator) < 0.5
    if dtype.is_float:
        return torch.randn(shape, generator=generator).to(dtype.torch)
    if dtype in (DType.I8, DType.U8):
        limits = torch.iinfo(dtype.torch)
        return torch.randint(limits.min, limits.max + 1, shape, generator=generator).to(dtype.torch)
    return torch.randint(0, 2, shape, generator=generator).to(dtype.torch)
