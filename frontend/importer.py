"""Walking an exported program and building the graph: inputs, constants, state, operators, outputs."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymBoolArgument,
    SymFloatArgument,
    SymIntArgument,
    TensorArgument,
)
from torch.fx import Node
from torch.utils import _pytree as pytree

from whet.errors import CaptureError, InternalError, UnsupportedOpError
from whet.frontend.context import Context
from whet.frontend.converters import IGNORED, converter_of
from whet.frontend.hints import described
from whet.frontend.symbols import SizeSymbols, emit_number
from whet.ir.builder import Builder
from whet.ir.dimensions import Dim
from whet.ir.graph import Graph, Location, StateSlot, Value
from whet.ir.types import DType, TensorType
from whet.runtime.structure import build

_SOURCE_LINE = re.compile(r'File "([^"]+)", line (\d+)')


def import_program(program: ExportedProgram) -> Graph:
    """The graph of a functional program. Raises UnsupportedOpError with every operator that has no
    converter."""
    return _Importer(program).run()


class _Leaf:
    """A place in a tree of inputs or outputs, to be numbered."""

    def __init__(self, index: int) -> None:
        self.index = index


class _Importer:
    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.graph = Graph(name="main")
        self.builder = Builder(self.graph)
        self.environment: dict[Node, Any] = {}
        self.symbols = SizeSymbols(program.graph.nodes, program.range_constraints)
        self.graph.dimensions = dict(self.symbols.dimensions)
        self.constants: dict[tuple[Any, ...], Value] = {}

    def run(self) -> Graph:
        self._require_converters()
        self._inputs()
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self._call(node)
        self._outputs()
        self._drop_unused_sources()
        return self.graph

    # inputs

    def dim(self, size: Any) -> Dim:
        """A size of torch as a dimension. Raises CaptureError for sizes that depend on data."""
        return self.symbols.translate(size)

    def _inputs(self) -> None:
        signature = self.program.graph_signature
        placeholders = {node.name: node for node in self.program.graph.nodes if node.op == "placeholder"}
        mutated = set(signature.buffers_to_mutate.values())
        leaves: list[Any] = []
        for spec in signature.input_specs:
            if spec.kind is InputKind.USER_INPUT:
                leaves.append(self._user_input(spec.arg, placeholders))
                continue
            if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                raise CaptureError(f"input {spec.arg.name!r} of the program is a {spec.kind.name}, which Whet has not")
            node = placeholders[spec.arg.name]
            tensor = self._stored_tensor(spec.target)
            if spec.target in mutated:
                self.environment[node] = self._state(spec.target, tensor)
            else:
                self.environment[node] = self._constant(tensor, spec.target)
        self.graph.input_structure = _structure(self.program.call_spec.in_spec, leaves)

    def _user_input(self, argument: Any, placeholders: dict[str, Node]) -> Any:
        if isinstance(argument, ConstantArgument):
            return argument.value
        node = placeholders[argument.name]
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise CaptureError(
                f"input {argument.name!r} is a Python number that dynamic_shapes leaves open: pass it as a "
                f"0-d tensor, or "
                "give None for it in dynamic_shapes"
            )
        self.environment[node] = self.builder.input(node.name, self.type_of(value))
        return _Leaf(len(self.graph.inputs) - 1)

    def _stored_tensor(self, target: str) -> torch.Tensor:
        for store in (self.program.state_dict, self.program.constants):
            if target in store:
                tensor: torch.Tensor = store[target]
                return tensor
        raise CaptureError(f"the program has no tensor {target!r}")

    def _state(self, target: str, tensor: torch.Tensor) -> Value:
        value = Value(self.builder.names.unique(target), TensorType.of(tensor))
        self.graph.state.append(StateSlot(value, value, tensor.detach()))
        return value

    def _constant(self, tensor: torch.Tensor, key: str) -> Value:
        """One constant for each tensor, so that tied weights stay tied."""
        tensor = tensor.detach()
        identity = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() == 0 or identity not in self.constants:
            self.constants[identity] = self.builder.constant(tensor, key)
        return self.constants[identity]

    def type_of(self, fake: torch.Tensor) -> TensorType:
        try:
            dtype = DType.of(fake.dtype)
        except KeyError:
            raise CaptureError(f"the model uses {fake.dtype}, which Whet has not") from None
        return TensorType(tuple(self.dim(size) for size in fake.shape), dtype)

    # operators

    def _require_converters(self) -> None:
        missing: dict[str, str] = {}
        for node in self.program.graph.nodes:
            if node.op == "call_function" and not self._known(node):
                missing.setdefault(described(str(node.target)), str(location_of(node)))
        if missing:
            raise UnsupportedOpError(sorted(missing.items()))

    def _known(self, node: Node) -> bool:
        return (
            converter_of(node.target) is not None
            or node.target in IGNORED
            or _is_symbolic(node)
            or node.target is operator.getitem
        )

    def _call(self, node: Node) -> None:
        if node.target in IGNORED:
            return
        if _is_symbolic(node):
            self.environment[node] = self.dim_or_number(node.meta["val"])
            return
        if node.target is operator.getitem:
            self.environment[node] = self._item(*node.args)  # type: ignore[arg-type]
            return
        convert = converter_of(node.target)
        assert convert is not None  # _require_converters was first
        arguments = [self._resolve(argument) for argument in _schema_arguments(node)]
        self.builder.location = location_of(node)
        types = self._result_types(node)
        context = Context(self.builder, types, str(node.target), _used_results(node, len(types)))
        try:
            self.environment[node] = convert(context, *arguments)
        except InternalError as error:
            raise InternalError(f"converting {node.target} with {_described(arguments)}: {error}") from error

    def _item(self, source: Node, index: int) -> Any:
        value = self.environment[source][index]
        if value is None and source.meta["val"][index] is not None:
            raise UnsupportedOpError([(f"{source.target} (its result {index})", str(location_of(source)))])
        return value

    def _result_types(self, node: Node) -> tuple[TensorType | None, ...]:
        value = node.meta.get("val")
        fakes = value if isinstance(value, (tuple, list)) else (value,)
        try:
            return tuple(self.type_of(fake) if isinstance(fake, torch.Tensor) else None for fake in fakes)
        except CaptureError as error:
            raise CaptureError(f"{node.target} at {location_of(node)}: {error}") from error

    def dim_or_number(self, value: Any) -> Any:
        return self.symbols.translate(value) if isinstance(value, (torch.SymInt, torch.SymFloat)) else value

    def _resolve(self, argument: Any) -> Any:
        if isinstance(argument, Node):
            if argument not in self.environment and argument.op == "get_attr":
                tensor = getattr(self.program.graph_module, str(argument.target))
                self.environment[argument] = self._constant(tensor, str(argument.target))
            return self.environment[argument]
        if isinstance(argument, (list, tuple)):
            return [self._resolve(item) for item in argument]
        return argument

    # outputs

    def _outputs(self) -> None:
        (output,) = [node for node in self.program.graph.nodes if node.op == "output"]
        leaves: list[Any] = []
        slots = {slot.input.name: slot for slot in self.graph.state}
        names = {
            spec.target: self.environment[node].name
            for spec, node in self._input_nodes()
            if spec.kind is InputKind.BUFFER and spec.target in self.program.graph_signature.buffers_to_mutate.values()
        }
        results: Any = output.args[0]
        for spec, result in zip(self.program.graph_signature.output_specs, results, strict=True):
            if spec.kind is OutputKind.BUFFER_MUTATION:
                slots[names[str(spec.target)]].output = self._resolve(result)
            elif spec.kind is OutputKind.USER_OUTPUT:
                leaves.append(self._user_output(spec.arg, result))
            else:
                raise CaptureError(
                    f"the model writes into {spec.target!r} ({spec.kind.name}): return the new tensor instead"
                )
        self.graph.output_structure = _structure(self.program.call_spec.out_spec, leaves)

    def _input_nodes(self) -> list[tuple[Any, Node]]:
        nodes = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        return list(zip(self.program.graph_signature.input_specs, nodes, strict=True))

    def _user_output(self, argument: Any, result: Any) -> Any:
        if isinstance(argument, ConstantArgument):
            return argument.value
        if not isinstance(argument, (TensorArgument, SymIntArgument, SymFloatArgument, SymBoolArgument)):
            raise CaptureError(f"the model returns a {type(argument).__name__}, which is no tensor")
        value = self._resolve(result)
        if not isinstance(value, Value):
            value = self._number(value)
        self.graph.outputs.append(value)
        return _Leaf(len(self.graph.outputs) - 1)

    def _number(self, value: Any) -> Value:
        """A Python number that follows from the sizes of the inputs, as a tensor without dimensions."""
        if isinstance(value, sympy.Expr) and not value.is_integer:
            return emit_number(self.builder, value)
        result: Value = self.builder.full(shape=(), value=value, dtype=DType.I64)
        return result

    def _drop_unused_sources(self) -> None:
        """Constants that no operation reads, and results that converters make up for callers who may not ask."""
        kept = set(self.graph.returns)
        for operation in list(self.graph.operations):
            unused = not any(value.uses or value in kept for value in operation.results)
            if unused and not operation.operands:
                self.graph.erase(operation)


def _structure(spec: pytree.TreeSpec, leaves: Sequence[Any]) -> Any:
    tree = pytree.tree_unflatten(list(leaves), spec)
    try:
        structure, order = build(tree, lambda item: isinstance(item, _Leaf))
    except TypeError as error:
        raise CaptureError(f"the structure of the model's inputs or outputs cannot be kept: {error}") from error
    return _renumber(structure, [leaf.index for leaf in order])


def _renumber(structure: Any, indices: Sequence[int]) -> Any:
    if structure["kind"] == "leaf":
        return {"kind": "leaf", "index": indices[structure["index"]]}
    if "items" not in structure:
        return structure
    return {**structure, "items": [_renumber(item, indices) for item in structure["items"]]}


def _used_results(node: Node, count: int) -> tuple[bool, ...]:
    """Which results anybody takes."""
    taken = {user.args[1] for user in node.users if user.target is operator.getitem}
    return tuple(index in taken for index in range(count))


def _described(arguments: Sequence[Any]) -> str:
    return ", ".join("[...]" if isinstance(item, list) and len(item) > 8 else str(item) for item in arguments)


def _is_symbolic(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) or (
        isinstance(value, (int, float, bool)) and converter_of(node.target) is None
    )


def _schema_arguments(node: Node) -> list[Any]:
    """All arguments in the schema's order, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return [*node.args, *node.kwargs.values()]
    arguments = []
    for index, parameter in enumerate(schema.arguments):
        if index < len(node.args) and not parameter.kwarg_only:
            arguments.append(node.args[index])
        else:
            default = parameter.default_value if parameter.has_default_value() else None
            arguments.append(node.kwargs.get(parameter.name, default))
    return arguments


def location_of(node: Node) -> Location:
    """The module path and the line of the model's source that made a node."""
    stack = node.meta.get("nn_module_stack") or {}
    module = list(stack.values())[-1][0] if stack else ""
    lines = [item for item in _SOURCE_LINE.findall(node.meta.get("stack_trace") or "") if not item[0].startswith("<")]
    own = [item for item in lines if "/torch/" not in item[0]] or lines  # the model's line, not the library's
    file, line = own[-1] if own else ("", "0")
    return Location(str(module).removeprefix("L['self']."), file, int(line))
