"""From the arguments of a call to the tensors that compiled code takes: structure, dtypes, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.errors import InputError
from whet.runtime.dimensions import parse
from whet.runtime.dtypes import DTYPES
from whet.runtime.manifest import Manifest, TensorSpec
from whet.runtime.structure import Spec, flatten, unflatten
from whet.runtime.tensors import Given, inspect


@dataclass(frozen=True)
class _Argument:
    """One argument of a call: the indices of the inputs in it, and its structure over leaves from 0."""

    shown: str
    indices: tuple[int, ...]
    spec: Spec

    @classmethod
    def of(cls, spec: Spec, shown: str) -> _Argument:
        indices = tuple(_indices(spec))
        return cls(shown, indices, _renumber(spec, {index: position for position, index in enumerate(indices)}))


class InputBinder:
    """Checks calls against a manifest."""

    def __init__(self, manifest: Manifest) -> None:
        self._inputs = manifest.inputs
        self._dimensions = manifest.dimensions
        positional, keyword = manifest.input_structure["items"]
        self._positional: Sequence[Spec] = positional["items"]
        self._keyword: Mapping[str, Spec] = dict(zip(keyword["keys"], keyword["items"], strict=True))
        self._parameters = manifest.parameters or tuple(self._leaf_name(item) for item in self._positional)
        self._arguments = [
            *(
                _Argument.of(spec, f"input {name!r}" if name else f"argument {index}")
                for index, (name, spec) in enumerate(zip(self._parameters, self._positional, strict=True))
            ),
            *(_Argument.of(spec, f"input {name!r}") for name, spec in self._keyword.items()),
        ]
        self._constant = not any(item.symbols for item in self._inputs)
        self._shapes = [item.shape for item in self._inputs]

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Given]:
        """The inputs in their order. Raises InputError that names the input, what it is, and what the model
        wants.
        """
        leaves = self._leaves(args, dict(kwargs))
        given = [
            inspect(leaf, DTYPES[item.dtype], len(item.shape), item.name)
            for leaf, item in zip(leaves, self._inputs, strict=True)
        ]
        return self.check(given)

    def check(self, given: list[Given]) -> list[Given]:
        """Inputs in their order, checked. Raises InputError as `bind` does."""
        if len(given) != len(self._inputs):
            raise InputError(f"{len(given)} tensor(s) were given; the model takes {len(self._inputs)}")
        for tensor, item in zip(given, self._inputs, strict=True):
            if tensor.dtype != item.dtype or len(tensor.shape) != len(item.shape):
                raise self._mismatch(item, tensor, "")
        if not self._constant or any(a.shape != b for a, b in zip(given, self._shapes, strict=True)):
            self._check_shapes(given)
        return given

    def _leaf_name(self, structure: Spec) -> str:
        """The parameter's name where the argument is one tensor, whose name then is the parameter's."""
        return self._inputs[structure["index"]].name if structure["kind"] == "leaf" else ""

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if len(args) > len(self._positional):
            raise InputError(f"{len(args)} positional argument(s) were given; the model takes {self._signature()}")
        positional = list(args)
        for index in range(len(args), len(self._positional)):
            name = self._parameters[index]
            positional.append(self._take(kwargs, name, self._positional[index], name or f"argument {index}"))
        keyword = {name: self._take(kwargs, name, spec, name) for name, spec in self._keyword.items()}
        if kwargs:
            unknown = ", ".join(map(repr, kwargs))
            raise InputError(f"unexpected keyword argument(s) {unknown}; the model takes {self._signature()}")
        leaves: list[Any] = [None] * len(self._inputs)
        for argument, value in zip(self._arguments, (*positional, *keyword.values()), strict=True):
            for index, leaf in zip(argument.indices, flatten(argument.spec, value, argument.shown), strict=True):
                leaves[index] = leaf
        return leaves

    def _take(self, kwargs: dict[str, Any], name: str, spec: Spec, shown: str) -> Any:
        if name in kwargs:
            return kwargs.pop(name)
        # An argument that held no tensor when the model was compiled can only be what it was.
        if not _indices(spec):
            return unflatten(spec, ())
        raise InputError(f"the input {shown!r} is missing; the model takes {self._signature()}")

    def _signature(self) -> str:
        names = [name or f"argument {index}" for index, name in enumerate(self._parameters)]
        names += [f"{name}=" for name in self._keyword]
        return f"({', '.join(names)})"

    def _check_shapes(self, given: Sequence[Given]) -> None:
        bindings: dict[str, int] = {}
        # Plain symbols first: they are what expressions over them are checked against.
        for tensor, item in zip(given, self._inputs, strict=True):
            for size, dim in zip(tensor.shape, item.shape, strict=True):
                if isinstance(dim, int):
                    if size != dim:
                        raise self._mismatch(item, tensor, "")
                elif dim.isidentifier() and bindings.setdefault(dim, size) != size:
                    raise self._mismatch(item, tensor, f", and {dim} is {bindings[dim]} in another dimension")
        for tensor, item in zip(given, self._inputs, strict=True):
            for size, dim in zip(tensor.shape, item.shape, strict=True):
                if isinstance(dim, str):
                    self._check_expression(item, tensor, dim, size, bindings)
        for name, size in bindings.items():
            if name in self._dimensions and size not in self._dimensions[name]:
                raise self._out_of_range(given, name, size)

    def _check_expression(self, item: TensorSpec, tensor: Given, dim: str, size: int, bindings: dict[str, int]) -> None:
        expression = parse(dim)
        unknown = expression.symbols - set(bindings)
        # Two unknowns in one size: any size may be right.
        if len(unknown) > 1:
            return
        if unknown:
            solution = expression.solve(size, bindings)
            if solution is None:
                raise self._mismatch(item, tensor, f", and no size makes {dim} equal to {size}")
            bindings[solution[0]] = solution[1]
        elif expression.evaluate(bindings) != size:
            raise self._mismatch(item, tensor, f", and {dim} is {expression.evaluate(bindings)} here")

    def _out_of_range(self, given: Sequence[Given], name: str, size: int) -> InputError:
        for tensor, item in zip(given, self._inputs, strict=True):
            if name in item.symbols:
                return self._mismatch(item, tensor, f", and {name} = {size} is not allowed")
        return InputError(f"the dimension {name} is {size}; the model was compiled for {self._dimensions[name]}")

    def _mismatch(self, item: TensorSpec, tensor: Given, why: str) -> InputError:
        got = f"{DTYPES[tensor.dtype].long if tensor.dtype in DTYPES else tensor.dtype}{list(tensor.shape)}"
        wanted = f"{DTYPES[item.dtype].long}[{', '.join(map(str, item.shape))}]"
        ranges = "; ".join(f"{name}: {self._dimensions[name]}" for name in sorted(item.symbols))
        return InputError(
            f"input {item.name!r} is {got}; the model wants {wanted}" + (f" ({ranges})" if ranges else "") + why
        )


def _indices(spec: Spec) -> list[int]:
    if spec["kind"] == "leaf":
        return [spec["index"]]
    return sorted(index for item in spec.get("items", ()) for index in _indices(item))


def _renumber(spec: Spec, new: Mapping[int, int]) -> Spec:
    if spec["kind"] == "leaf":
        return {"kind": "leaf", "index": new[spec["index"]]}
    if "items" not in spec:
        return spec
    return {**spec, "items": [_renumber(item, new) for item in spec["items"]]}
