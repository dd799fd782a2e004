"""Where every tensor of a static program lies, and what one run does, call by call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import PurePath

from whet.backends.manifest import stored_dtype
from whet.backends.tvm.calls import KernelCall, Operand, Steps, View
from whet.backends.tvm.export_c.memory_plan import Buffer, align, most_live, plan_memory
from whet.errors import InternalError
from whet.ir.graph import Graph, Location, Value
from whet.ir.types import TensorType
from whet.runtime.dtypes import DTYPES
from whet.runtime.safetensors import RawTensor


class Region(Enum):
    """Memory of its own; the value is its name in C (of inputs and outputs, the array of their addresses)."""

    ARENA = "arena"
    WEIGHTS = "model_weights"
    STATE = "state"
    INPUT = "inputs"
    OUTPUT = "outputs"


@dataclass(frozen=True)
class Place:
    """`offset` bytes into a region, or the number of the input or output."""

    region: Region
    offset: int


@dataclass(frozen=True)
class Tensor:
    """An argument of a kernel; `dtype` is Whet's name of what is in memory ("i8" for i4)."""

    place: Place
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Call:
    """One kernel: its arguments by their number among the tensors, and its scratch memory in the arena."""

    kernel: str
    arguments: tuple[int, ...]
    workspace: int
    workspace_bytes: int
    comment: str


@dataclass(frozen=True)
class Copy:
    """`size` bytes from one place to another."""

    target: Place
    source: Place
    size: int


@dataclass(frozen=True)
class Slot:
    """A state: its place, its size, and where its initial value lies among the weights (None: all zero bits)."""

    offset: int
    size: int
    initial: int | None


@dataclass
class Layout:
    """A static program without its text."""

    tensors: list[Tensor] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    weights: list[tuple[int, RawTensor]] = field(default_factory=list)
    weights_bytes: int = 0
    state_bytes: int = 0
    arena_bytes: int = 0
    live_bytes: int = 0


def _where(location: Location) -> str:
    """The file by its name alone: sources of a program do not depend on the machine that wrote them."""
    return str(replace(location, file=PurePath(location.file).name))


def size_of(type: TensorType) -> int:
    """Bytes of a tensor in memory."""
    return math.prod(type.static_shape) * DTYPES[stored_dtype(type.dtype)].itemsize


def lay_out(
    graph: Graph,
    steps: Steps,
    returns: Sequence[Operand],
    weights: Mapping[str, RawTensor],
    initial: Mapping[Value, RawTensor],
    workspace: Mapping[str, int],
) -> Layout:
    """Place everything.

    Args:
        graph: as it was compiled; all its sizes are numbers.
        steps: what its `main` does.
        returns: what its `main` returns: outputs, then new states.
        weights: constants of the kernels, by key.
        initial: initial value by the input of the state.
        workspace: scratch bytes by kernel.
    """
    return _Layouter(graph, steps, returns, weights, initial, workspace).run()


class _Layouter:
    def __init__(
        self,
        graph: Graph,
        steps: Steps,
        returns: Sequence[Operand],
        weights: Mapping[str, RawTensor],
        initial: Mapping[Value, RawTensor],
        workspace: Mapping[str, int],
    ) -> None:
        self.graph = graph
        self.calls = [step for step in steps if isinstance(step, KernelCall)]
        self.weights = weights
        self.initial = initial
        self.workspace = workspace
        self.layout = Layout()
        self.places: dict[Operand, Place] = {}
        self.numbers: dict[Tensor, int] = {}
        # a view has the memory of what it shows, through any number of views
        self.roots: dict[Operand, Operand] = {}
        for step in steps:
            if isinstance(step, View):
                self.roots[step.result] = self._root(step.source)
        roots = [self._root(operand) for operand in returns]
        self.outputs, self.new_states = roots[: len(graph.outputs)], roots[len(graph.outputs) :]

    def run(self) -> Layout:
        self._place_weights()
        self._place_state()
        for index, value in enumerate(self.graph.inputs):
            self.places[value] = Place(Region.INPUT, index)
        self._place_outputs()
        workspaces, stages = self._place_computed()
        for call, offset in zip(self.calls, workspaces, strict=True):
            self.layout.calls.append(self._call(call, offset))
        self._leave(stages)
        return self.layout

    def _root(self, operand: Operand) -> Operand:
        return self.roots.get(operand, operand)

    def _place_weights(self) -> None:
        for key, tensor in self.weights.items():
            self.places[key] = Place(Region.WEIGHTS, self._add_weight(tensor))

    def _add_weight(self, tensor: RawTensor) -> int:
        offset = self.layout.weights_bytes
        self.layout.weights.append((offset, tensor))
        self.layout.weights_bytes += align(tensor.array.nbytes)
        return offset

    def _place_state(self) -> None:
        for slot in self.graph.state:
            tensor, offset = self.initial[slot.input], self.layout.state_bytes
            initial = self._add_weight(tensor) if any(tensor.array.tobytes()) else None
            self.places[slot.input] = Place(Region.STATE, offset)
            self.layout.slots.append(Slot(offset, tensor.array.nbytes, initial))
            self.layout.state_bytes += align(tensor.array.nbytes)

    def _place_outputs(self) -> None:
        """What a kernel computes and the program returns is written where the caller wants it; once."""
        computed = {value for call in self.calls for value in call.results}
        for index, root in enumerate(self.outputs):
            if root in computed and root not in self.places:
                self.places[root] = Place(Region.OUTPUT, index)

    def _place_computed(self) -> tuple[list[int], list[int]]:
        """Plan the arena. Offsets of the calls' scratch memory, and of a stage for each state that needs one."""
        values, buffers = self._lifetimes()
        end = len(self.calls)
        buffers += [Buffer(self.workspace.get(call.kernel, 0), step, step) for step, call in enumerate(self.calls)]
        buffers += [Buffer(self.layout.slots[index].size, end, end) for index in self._staged()]
        plan = plan_memory(buffers)
        for value, offset in zip(values, plan.offsets, strict=False):
            self.places[value] = Place(Region.ARENA, offset)
        self.layout.arena_bytes, self.layout.live_bytes = plan.peak, most_live(buffers)
        scratch = len(values) + len(self.calls)
        return list(plan.offsets[len(values) : scratch]), list(plan.offsets[scratch:])

    def _lifetimes(self) -> tuple[list[Value], list[Buffer]]:
        """Values of the arena, from the call that computes each to the last one that reads it."""
        first: dict[Value, int] = {}
        last: dict[Operand, int] = {}
        for step, call in enumerate(self.calls):
            last.update((self._root(argument), step) for argument in call.arguments)
            for value in call.results:
                last[value] = step
                if value not in self.places:
                    first[value] = step
        last.update((root, len(self.calls)) for root in (*self.outputs, *self.new_states))
        return list(first), [Buffer(size_of(value.type), step, last[value]) for value, step in first.items()]

    def _staged(self) -> list[int]:
        """Numbers of the states whose new value is the old one of another: that may be overwritten before."""
        own = [slot.input for slot in self.graph.state]
        return [index for index, root in enumerate(self.new_states) if root in own and root is not own[index]]

    def _call(self, call: KernelCall, workspace: int) -> Call:
        if call.symbols:
            raise InternalError(f"{call.kernel} takes the sizes {call.symbols}, and all sizes are numbers")
        operands = (*call.arguments, *call.results)
        names = " + ".join(operation.name for operation in call.operations)
        return Call(
            call.kernel,
            tuple(self._number(operand) for operand in operands),
            workspace,
            self.workspace.get(call.kernel, 0),
            f"{names} at {_where(call.operations[0].location)}",
        )

    def _number(self, operand: Operand) -> int:
        """Of the tensor among all; equal ones are one."""
        place = self.places[self._root(operand)]
        if isinstance(operand, str):
            raw = self.weights[operand]
            tensor = Tensor(place, tuple(raw.array.shape), raw.dtype)
        else:
            tensor = Tensor(place, operand.type.static_shape, stored_dtype(operand.type.dtype))
        if tensor not in self.numbers:
            self.numbers[tensor] = len(self.layout.tensors)
            self.layout.tensors.append(tensor)
        return self.numbers[tensor]

    def _leave(self, stages: list[int]) -> None:
        """What is left to do behind the kernels: outputs, then the state, so that all read what was before."""
        copies = [
            Copy(Place(Region.OUTPUT, index), self.places[root], size_of(value.type))
            for index, (root, value) in enumerate(zip(self.outputs, self.graph.outputs, strict=True))
        ]
        sources = [self.places[root] for root in self.new_states]
        for index, stage in zip(self._staged(), stages, strict=True):
            place = Place(Region.ARENA, stage)
            copies.append(Copy(place, sources[index], self.layout.slots[index].size))
            sources[index] = place
        copies += [
            Copy(self.places[slot.input], source, size_of(slot.input.type))
            for slot, source in zip(self.graph.state, sources, strict=True)
        ]
        self.layout.copies = [copy for copy in copies if copy.size and copy.source != copy.target]
