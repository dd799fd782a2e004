"""From regions to a Relax module: one PrimFunc a kernel, and a `main` that calls them in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import tvm
from tvm import relax, te, tirx

from whet.backends.tvm.argument_checks import WEIGHTS
from whet.backends.tvm.calls import KernelCall, Operand, Step, View
from whet.backends.tvm.dtypes import TVM_DTYPES
from whet.backends.tvm.kernels.decisions import DEFAULT, Decided, Decision
from whet.backends.tvm.lowering import LOWERINGS_BY_KIND
from whet.backends.tvm.lowering.context import LoweringContext, Packing
from whet.backends.tvm.lowering.stored import UNPACKING, read_in_kernels
from whet.backends.tvm.regions import Region, form_regions
from whet.backends.tvm.sizes import Sizes
from whet.backends.tvm.workload import workload_text
from whet.errors import BackendError
from whet.ir.dimensions import dim_symbols
from whet.ir.graph import Graph, Operation, Value
from whet.ir.printer import constant_keys, format_attribute
from whet.ir.target import Target
from whet.ir.types import TensorType

Schedule = Callable[[tirx.PrimFunc, Any], tirx.PrimFunc]


@dataclass
class Kernel:
    """One compiled region: its name in the library, and what it computes."""

    name: str
    operations: tuple[str, ...]
    location: str
    schedule: str


@dataclass
class EmittedModule:
    """A Relax module with the weights that its `main` takes after inputs and state, and what `main` does: its
    steps, and what it returns.
    """

    module: tvm.IRModule
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    kernels: list[Kernel] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    returns: list[Operand] = field(default_factory=list)


def emit(
    graph: Graph,
    target: Target,
    schedule: Schedule,
    on_kernel: Callable[[str], None],
    decide: Callable[[str], Decision] = lambda workload: DEFAULT,
) -> EmittedModule:
    """Lower every region. Raises BackendError listing operations without a lowering.

    Args:
        graph: a graph in the form that the backend's preparation leaves.
        target: what to compile for.
        schedule: applied to every kernel.
        on_kernel: called with a name before each kernel is lowered (progress).
        decide: what was tuned for a workload (`workload_text`).
    """
    known = {"constant", *LOWERINGS_BY_KIND[target.kind]}
    missing = {op.name: str(op.location) for op in graph.operations if op.name not in known}
    if missing:
        lines = "\n".join(f"  {name} at {where}" for name, where in missing.items())
        raise BackendError(f"no lowering for {target.name}:\n{lines}")
    return _Emitter(graph, target, schedule, on_kernel, decide).run()


class _Emitter:
    def __init__(
        self,
        graph: Graph,
        target: Target,
        schedule: Schedule,
        on_kernel: Callable[[str], None],
        decide: Callable[[str], Decision],
    ) -> None:
        self.graph = graph
        self.target = target
        self.schedule = schedule
        self.on_kernel = on_kernel
        self.decide = decide
        self.builder = relax.BlockBuilder()
        self.keys = constant_keys(graph)
        self.sizes = Sizes(graph)
        self.variables: dict[Any, Any] = {}
        self.weights: dict[str, torch.Tensor] = {}
        self.weight_keys: dict[Any, str] = {}
        self.steps: list[Step] = []
        self.kernels: dict[str, tuple[Any, list[str]]] = {}
        self.described: list[Kernel] = []

    def run(self) -> EmittedModule:
        regions = kernel_regions(self.graph, self.target)
        lowered = {region: self._lower(region) for region in regions if not region.is_view}
        parameters = [self._parameter(value) for value in self.graph.arguments]
        parameters += self._weight_parameters(regions, lowered)
        with self.builder.function("main", parameters, attrs={WEIGHTS: len(self.weights)}):
            with self.builder.dataflow():
                for region in regions:
                    self._call(region, lowered.get(region))
                results = [self._returned(value) for value in self.graph.returns]
                output = self.builder.emit_output(relax.Tuple(results))
            self.builder.emit_func_output(output)
        returns = [self._operand(value) for value in self.graph.returns]
        return EmittedModule(self.builder.finalize(), self.weights, self.described, self.steps, returns)

    def _parameter(self, value: Value) -> relax.Var:
        variable = relax.Var(value.name.replace(".", "_"), self._tensor_type(value.type))
        self.variables[value] = variable
        return variable

    def _tensor_type(self, type: TensorType) -> Any:
        return relax.TensorType(self._shape(type), TVM_DTYPES[type.dtype])

    def _shape(self, type: TensorType) -> list[Any]:
        return [self.sizes.of(dim) for dim in type.shape]

    def _lower(self, region: Region) -> _Lowered:
        """The kernel of a region; regions that read alike share one."""
        self.on_kernel(" + ".join(operation.name for operation in region.operations))
        decision = self.decide(workload_text(region))
        expressed = express(region, self.target, decision)
        key = _region_key(region, expressed.context)
        if key not in self.kernels:
            name = f"{_region_name(region)}_{len(self.kernels)}"
            function = expressed.function(self.schedule).with_attr("global_symbol", name)
            self.kernels[key] = (self.builder.add_func(function, name), expressed.symbols)
            rule = str(function.attrs.get("whet.schedule", "none")) if function.attrs else "none"
            rule += "" if decision == DEFAULT else f" ({decision})"
            self.described.append(
                Kernel(name, tuple(op.name for op in region.operations), str(region.operations[0].location), rule)
            )
        return _Lowered(self.kernels[key][0], expressed.sources, expressed.symbols)

    def _weight_parameters(self, regions: Sequence[Region], lowered: dict[Region, _Lowered]) -> list[relax.Var]:
        """Constants as the kernels want them, each once; those that are views' operands or outputs as they are."""
        wanted: dict[Any, Value | Packing] = {}
        for region in regions:
            sources = lowered[region].sources if region in lowered else region.inputs
            for source in sources:
                if isinstance(source, Packing):
                    wanted.setdefault(source.identity, source)
                elif source.constant is not None:
                    wanted.setdefault(source, source)
        for value in self.graph.returns:
            if value.constant is not None:
                wanted.setdefault(value, value)
        return [self._weight_parameter(identity, source) for identity, source in wanted.items()]

    def _weight_parameter(self, identity: Any, source: Value | Packing) -> relax.Var:
        if isinstance(source, Packing):
            tensor, key = source.tensor, f"{self.keys[source.value]}:{source.recipe}"
        else:
            assert source.constant is not None
            tensor, key = source.constant, self.keys[source]
        self.weights[key] = tensor
        self.weight_keys[identity] = key
        type = self._tensor_type(TensorType.of(tensor))
        self.variables[identity] = relax.Var(f"w{len(self.weights)}", type)
        return self.variables[identity]

    def _call(self, region: Region, lowered: _Lowered | None) -> None:
        if lowered is None:
            (operation,) = region.operations
            self.steps.append(View(self._operand(operation.operand(0)), operation.result))
            source = self.variables[operation.operand(0)]
            shape = relax.ShapeExpr(self._shape(operation.result.type))
            self.variables[operation.result] = self.builder.emit(relax.op.reshape(source, shape))
            return
        arguments = [
            self.variables[source.identity if isinstance(source, Packing) else source] for source in lowered.sources
        ]
        arguments += [self.sizes.symbols[name] for name in lowered.symbols]
        self.steps.append(
            KernelCall(
                str(lowered.function.name_hint),
                tuple(map(self._operand, lowered.sources)),
                tuple(lowered.symbols),
                tuple(region.results),
                tuple(region.operations),
                region.anchor or region.operations[0],
            )
        )
        types = [self._tensor_type(value.type) for value in region.results]
        call = relax.call_tir(lowered.function, arguments, types if len(types) > 1 else types[0])
        result = self.builder.emit(call)
        if len(types) == 1:
            self.variables[region.results[0]] = result
            return
        for index, value in enumerate(region.results):
            self.variables[value] = self.builder.emit(relax.TupleGetItem(result, index))

    def _operand(self, source: Value | Packing) -> Operand:
        if isinstance(source, Packing):
            return self.weight_keys[source.identity]
        return self.weight_keys.get(source, source)

    def _returned(self, value: Value) -> Any:
        return self.variables[value]


def kernel_regions(graph: Graph, target: Target) -> list[Region]:
    """The regions that become kernels, and the views between them."""
    readers, returned = UNPACKING[target.kind], set(graph.returns)
    return form_regions(graph, lambda operation: read_in_kernels(operation, readers, returned))


@dataclass
class _Lowered:
    """A region's kernel and what it is called with."""

    function: Any
    sources: list[Value | Packing]
    symbols: list[str]


@dataclass
class Expressed:
    """A region as tensor expressions.

    Attributes:
        context: the tensors, and what the kernel's arguments are.
        outputs: of the region.
        symbols: names of the symbolic dimensions, which the kernel takes last.
        target: with the decision, and the tiles that there were to choose from.
    """

    context: LoweringContext
    outputs: list[te.Tensor]
    symbols: list[str]
    target: Decided

    @property
    def sources(self) -> list[Value | Packing]:
        """What the kernel is called with, in order, before symbols and outputs."""
        return [source for _, source in self.context.arguments]

    def function(self, schedule: Schedule) -> tirx.PrimFunc:
        """The scheduled kernel, called `main`."""
        placeholders = [placeholder for placeholder, _ in self.context.arguments]
        variables = [self.context.symbols[symbol] for symbol in self.symbols]
        function = te.create_prim_func([*placeholders, *variables, *self.outputs], index_dtype_override="int64")
        function = schedule(function.with_attr("global_symbol", "main"), self.target)
        return function.with_attr("tirx.noalias", True)


def express(region: Region, target: Target, decision: Decision = DEFAULT) -> Expressed:
    """Lower the operations of one region. Raises BackendError for what has no lowering."""
    symbols = sorted(
        {s.name for v in _region_values(region) for d in v.type.shape for s in dim_symbols(d)}
        | _attribute_symbols(region)
    )
    decided = Decided(target, decision)
    # Under names of their own: the user's may be words of the language that a kernel is printed in ("new" in CUDA).
    variables = {name: tirx.Var(f"s{index}", "int64") for index, name in enumerate(symbols)}
    context = LoweringContext(decided, variables)
    return Expressed(context, _lower_operations(context, region), symbols, decided)


def _lower_operations(context: LoweringContext, region: Region) -> list[te.Tensor]:
    lowerings = LOWERINGS_BY_KIND[context.target.kind]
    outputs: list[te.Tensor] = []
    for operation in region.operations:
        context.operation = operation
        try:
            result = _empty(context, operation) or lowerings[operation.name](context, operation)
        except BackendError:
            raise
        except Exception as error:
            raise context.unsupported(f"lowering failed: {type(error).__name__}: {error}") from error
        outputs = list(result) if isinstance(result, (tuple, list)) else [result]
        context.tensors.update(zip(operation.results, outputs, strict=True))
    return outputs


def _empty(context: LoweringContext, operation: Operation) -> list[te.Tensor] | None:
    """Results without any element, where that is all there are: what fills nothing needs no lowering of its own."""
    if any(all(dim != 0 for dim in value.type.shape) for value in operation.results):
        return None
    return [_zeros(context, value) for value in operation.results]


def _zeros(context: LoweringContext, value: Value) -> te.Tensor:
    zero = tirx.const(0, TVM_DTYPES[value.type.dtype])
    return te.compute(context.dims(value.type.shape), lambda *_: zero, name="empty")


def _region_values(region: Region) -> list[Value]:
    return [*region.inputs, *(result for operation in region.operations for result in operation.results)]


def _attribute_symbols(region: Region) -> set[str]:
    found: set[str] = set()

    def visit(value: Any) -> None:
        if isinstance(value, tuple):
            for item in value:
                visit(item)
        elif hasattr(value, "free_symbols"):
            found.update(item.name for item in value.free_symbols)

    for operation in region.operations:
        for value in operation.attributes.values():
            visit(value)
    return found


def _region_key(region: Region, context: LoweringContext) -> str:
    """Text that is equal for regions which compute the same of other values."""
    names: dict[Value, str] = {}

    def name(value: Value | None) -> str:
        if value is None:
            return "none"
        number = context.number(value)
        if number is not None:
            return f"{number!r}:{value.type}"
        return f"{names.setdefault(value, f'%{len(names)}')}:{value.type}"

    lines = []
    for operation in region.operations:
        attributes = ", ".join(f"{key}={format_attribute(item)}" for key, item in operation.attributes.items())
        operands = ", ".join(name(value) for value in operation.operands)
        results = ", ".join(name(value) for value in operation.results)
        lines.append(f"{results} = {operation.name}({operands}) {{{attributes}}}")
    lines += [
        f"{placeholder.shape}:{placeholder.dtype}:{_source_name(source, names)}"
        for placeholder, source in context.arguments
    ]
    return "\n".join(lines)


def _source_name(source: Value | Packing, names: dict[Value, str]) -> str:
    if isinstance(source, Packing):
        return f"{names.get(source.value)}:{source.recipe}"
    return str(names.get(source))


def _region_name(region: Region) -> str:
    names = [operation.name for operation in region.operations]
    return "_".join(dict.fromkeys(names))[:60]
