"""Choosing how feature maps lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from whet.errors import PassError
from whet.ir.builder import Builder, Names
from whet.ir.dimensions import Dim, same_dim
from whet.ir.graph import Graph, Operation, StateSlot, Value
from whet.ir.ops.contraction import CHANNELS_FIRST, CHANNELS_LAST
from whet.ir.ops.elementwise import Elementwise
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import remove_dead_code
from whet.passes.layout_rules import (
    RULES,
    Attributes,
    Order,
    channels_last,
    compose,
    identity,
    inverse,
    permuted,
    reshape_blocks,
    reshape_order,
    significant,
)


@dataclass(frozen=True)
class AssignLayout(Pass):
    """Give every operation with a `layout` (conv, pooling, resize, ...) the layout "channels_last".

    The graph is built anew in one walk. Every value may be stored with its dimensions in another order;
    operations that can work in the order of their operands do (elementwise, concat, reductions, ... and
    transposes cost nothing at all), and a transpose is made only where an operation needs an order that is
    not there yet. A convolutional network keeps the one of its input (and of its output, where that is a
    feature map).
    """

    layout: str = CHANNELS_LAST

    must_change: ClassVar[bool] = False

    def run(self, graph: Graph, context: Context) -> PassResult:
        """A new graph, or the same one where every layout is right. Raises PassError for another layout."""
        if self.layout != CHANNELS_LAST:
            raise PassError(f"AssignLayout knows the layout {CHANNELS_LAST!r} only, got {self.layout!r}")
        anchors = sum(_is_anchor(operation) for operation in graph.operations)
        if not anchors:
            return PassResult(graph, False)
        rebuilt = _Rebuild(graph).run()
        return PassResult(rebuilt, True, {"channels-last operation": anchors})


def _is_anchor(operation: Operation) -> bool:
    return operation.attributes.get("layout") == CHANNELS_FIRST


class _Rebuild:
    """`versions[old value]` holds the new values that store it, by order; the first is how it was made."""

    def __init__(self, graph: Graph) -> None:
        self.old = graph
        self.new = Graph(
            name=graph.name,
            dimensions=dict(graph.dimensions),
            output_names=list(graph.output_names),
            input_structure=graph.input_structure,
            output_structure=graph.output_structure,
        )
        self.builder = Builder(self.new)
        self.builder.names = Names([value.name for value in graph.values()])
        self.versions: dict[Value, dict[Order, Value]] = {}

    def run(self) -> Graph:
        for value in self.old.inputs:
            self.new.inputs.append(self._argument(value))
        self.new.state = [StateSlot(new := self._argument(slot.input), new, slot.initial) for slot in self.old.state]
        for operation in self.old.operations:
            self.builder.location = operation.location
            self._operation(operation)
        self.new.outputs = [self._stored(value, identity(value.type.rank)) for value in self.old.outputs]
        for old, slot in zip(self.old.state, self.new.state, strict=True):
            slot.output = self._stored(old.output, identity(old.output.type.rank))
        remove_dead_code(self.new)
        return self.new

    def _argument(self, value: Value) -> Value:
        twin = Value(value.name, value.type)
        self.versions[value] = {identity(value.type.rank): twin}
        return twin

    # operations

    def _operation(self, operation: Operation) -> None:
        if _is_anchor(operation):
            order = channels_last(operation.operand(0).type.rank)
            self._first_operand(operation, order, {**operation.attributes, "layout": CHANNELS_LAST}, order)
        elif isinstance(operation.definition, Elementwise):
            self._elementwise(operation)
        elif operation.name == "transpose":
            self._transpose(operation)
        elif operation.name == "concat":
            self._concat(operation)
        elif operation.name in RULES:
            self._by_rule(operation)
        else:
            self._as_it_is(operation)

    def _as_it_is(self, operation: Operation) -> None:
        operands = [None if v is None else self._stored(v, identity(v.type.rank)) for v in operation.operands]
        self._copy(operation, operands, operation.attributes, None)

    def _copy(
        self, operation: Operation, operands: list[Value | None], attributes: Attributes, order: Order | None
    ) -> None:
        """The same operation on stored operands; its results are stored in `order` (None: in their own)."""
        types = operation.definition.result_types([None if v is None else v.type for v in operands], attributes)
        twin = Operation(operation.definition, operands, attributes, operation.location)
        twin.results = [Value(old.name, type, twin) for old, type in zip(operation.results, types, strict=True)]
        self.new.operations.append(twin)
        for old, new in zip(operation.results, twin.results, strict=True):
            self.versions[old] = {identity(old.type.rank) if order is None else order: new}

    def _first_operand(self, operation: Operation, order: Order, attributes: Attributes, result: Order) -> None:
        """The first operand in `order`, the others as they are."""
        first, *others = operation.operands
        assert first is not None
        operands = [None if v is None else self._stored(v, identity(v.type.rank)) for v in others]
        self._copy(operation, [self._stored(first, order), *operands], attributes, result)

    def _by_rule(self, operation: Operation) -> None:
        value = operation.operand(0)
        orders = list(self.versions[value])
        if operation.name == "reshape":
            blocks = reshape_blocks(operation)
            if blocks is not None:
                nearest = [reshape_order(blocks, order, value.type.shape) for order in orders]
                # an order that differs in dimensions of size 1 only is free
                orders = sorted(nearest, key=lambda order: self._price(value, order))
        for order in orders:
            stored = RULES[operation.name](operation, order)
            if stored is not None:
                self._first_operand(operation, order, stored.attributes, stored.order)
                return
        self._as_it_is(operation)

    def _transpose(self, operation: Operation) -> None:
        """Nothing is moved: what stores the operand stores the result, in other orders."""
        back = inverse(operation.attributes["permutation"])
        versions = self.versions[operation.operand(0)]
        self.versions[operation.result] = {compose(order, back): new for order, new in versions.items()}

    def _concat(self, operation: Operation) -> None:
        operands = [value for value in operation.operands if value is not None]
        order = self._cheapest(operands, operation.result.type.rank)
        attributes = {**operation.attributes, "axis": order.index(operation.attributes["axis"])}
        self._copy(operation, [self._stored(value, order) for value in operands], attributes, order)

    def _elementwise(self, operation: Operation) -> None:
        rank = operation.result.type.rank
        operands = [value for value in operation.operands if value is not None]
        order = self._cheapest(operands, rank)
        stored = [None if value is None else self._aligned(value, order) for value in operation.operands]
        self._copy(operation, stored, operation.attributes, order)

    # orders

    def _cheapest(self, operands: list[Value], rank: int) -> Order:
        """The order for a result of `rank` that needs the fewest elements transposed."""
        candidates = dict.fromkeys([identity(rank)])
        for value in operands:
            if value.constant is None:
                candidates.update(dict.fromkeys(_grown(order, rank) for order in self.versions[value]))
        prices = {
            order: sum(self._price(value, _shrunk(order, value.type.rank)) for value in operands)
            for order in candidates
        }
        # of equals: what convolutions want, then what needs no remembering
        liked = [channels_last(rank), identity(rank), *candidates]
        return min(candidates, key=lambda order: (prices[order], liked.index(order)))

    def _price(self, value: Value, order: Order) -> int:
        """Elements to transpose at run time to have `value` in `order`; symbolic dimensions count as one."""
        if value.constant is not None or (value.producer is not None and value.producer.name == "full"):
            return 0
        wanted = significant(order, value.type.shape)
        if any(significant(have, value.type.shape) == wanted for have in self.versions[value]):
            return 0
        count = 1
        for dim in value.type.shape:
            count *= dim if isinstance(dim, int) else 1
        return count

    # stored values

    def _stored(self, value: Value, order: Order) -> Value:
        """The new value that stores `value` in `order`, made if need be."""
        versions = self.versions[value]
        if order not in versions:
            versions[order] = self._rearranged(value, order)
        return versions[order]

    def _rearranged(self, value: Value, order: Order) -> Value:
        versions = self.versions[value]
        shape, hint = permuted(value.type.shape, order), f"{value.name}_{''.join(map(str, order))}"
        result: Value
        if value.constant is not None:
            producer = value.producer
            assert producer is not None
            key, dtype = producer.attributes["key"], producer.attributes["dtype"]
            tensor = value.constant.permute(order).contiguous()
            return self.builder.constant(tensor, f"{key}.{''.join(map(str, order))}" if key else "", dtype)
        if value.producer is not None and value.producer.name == "full":
            result = self.builder.full(**{**value.producer.attributes, "shape": shape}, name_hint=hint)
            return result
        wanted = significant(order, value.type.shape)
        for have, stored in versions.items():
            if significant(have, value.type.shape) == wanted:
                result = self.builder.reshape(stored, shape=shape, name_hint=hint)
                return result
        have, stored = next(iter(versions.items()))
        permutation = tuple(have.index(dim) for dim in order)
        result = self.builder.transpose(stored, permutation=permutation, name_hint=hint)
        return result

    def _aligned(self, value: Value, order: Order) -> Value:
        """`value` such that it broadcasts against a tensor stored in `order`, whose rank may be higher."""
        missing = len(order) - value.type.rank
        stored = self._stored(value, _shrunk(order, value.type.rank))
        shape: list[Dim] = [1 if dim < missing else value.type.shape[dim - missing] for dim in order]
        needed = next((place for place, dim in enumerate(order) if dim >= missing), len(order))
        shape = shape[needed:]
        if len(shape) == stored.type.rank and all(map(same_dim, shape, stored.type.shape)):
            return stored
        if stored.constant is not None and all(isinstance(dim, int) for dim in shape):
            producer = stored.producer
            assert producer is not None
            reshaped = stored.constant.reshape([int(dim) for dim in shape])
            return self.builder.constant(reshaped, producer.attributes["key"], producer.attributes["dtype"])
        result: Value = self.builder.reshape(stored, shape=tuple(shape), name_hint=f"{value.name}_aligned")
        return result


def _grown(order: Order, rank: int) -> Order:
    """The order of a tensor that broadcasting has given leading dimensions."""
    grown = rank - len(order)
    return (*range(grown), *(dim + grown for dim in order))


def _shrunk(order: Order, rank: int) -> Order:
    """The order that the trailing `rank` dimensions have in `order`."""
    missing = len(order) - rank
    return tuple(dim - missing for dim in order if dim >= missing)
