"""The manifest of a graph: what the runtime must know to call the code and check its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from whet.ir.dimensions import Dim, format_dim
from whet.ir.graph import Graph
from whet.ir.printer import constant_keys
from whet.ir.target import Target
from whet.ir.types import DType, TensorType
from whet.runtime.manifest import Dimension, KernelCall, Manifest, StateSpec, TargetSpec, TensorSpec
from whet.runtime.safetensors import RawTensor

_PACKAGES = {"whet": "whet", "tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi", "torch": "torch"}


def make_manifest(graph: Graph, target: Target, weights: Sequence[str], kernels: Sequence[KernelCall] = ()) -> Manifest:
    """The manifest of `graph` compiled for `target`; `weights` are keys in the order in which code takes them."""
    keys = constant_keys(graph)
    return Manifest(
        target=target_spec(target),
        inputs=tuple(_tensor(value.name, value.type) for value in graph.inputs),
        outputs=tuple(
            _tensor(name, value.type) for name, value in zip(_output_names(graph), graph.outputs, strict=True)
        ),
        weights=tuple(weights),
        state=tuple(
            StateSpec(
                slot.input.name, slot.input.type.static_shape, slot.input.type.dtype.value, weight=keys[slot.input]
            )
            for slot in graph.state
        ),
        dimensions={
            name: Dimension(limits.minimum, limits.maximum, limits.multiple_of)
            for name, limits in graph.dimensions.items()
        },
        input_structure=graph.input_structure or _flat_inputs(len(graph.inputs)),
        output_structure=graph.output_structure or _flat_outputs(len(graph.outputs)),
        parameters=_parameters(graph),
        versions={key: _version(package) for key, package in _PACKAGES.items()},
        kernels=tuple(kernels),
    )


def target_spec(target: Target) -> TargetSpec:
    """What a device must be to run code for `target`."""
    return TargetSpec(
        name=target.name,
        triple=target.triple,
        arch=target.arch,
        os=target.os,
        features=target.features,
        device=target.kind,
        device_arch=target.device_arch,
    )


def state_weights(graph: Graph) -> dict[str, torch.Tensor]:
    """Initial values of the state, by the keys that the manifest names."""
    keys = constant_keys(graph)
    return {keys[slot.input]: slot.initial for slot in graph.state}


def to_raw(tensor: torch.Tensor) -> Any:
    """A tensor as the runtime's weights are: numpy, or raw bits for bfloat16, which numpy has not."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        return RawTensor("bf16", tensor.view(torch.uint16).numpy())
    return tensor.numpy()


def _tensor(name: str, type: TensorType) -> TensorSpec:
    return TensorSpec(name, tuple(_dim(dim) for dim in type.shape), stored_dtype(type.dtype))


def stored_dtype(dtype: DType) -> str:
    """Whet's name of what a tensor of this type is in memory: one i4 value takes a byte."""
    return DType.I8.value if dtype is DType.I4 else dtype.value


def _dim(dim: Dim) -> int | str:
    return dim if isinstance(dim, int) else format_dim(dim)


def _output_names(graph: Graph) -> list[str]:
    return graph.output_names or [value.name for value in graph.outputs]


def _flat_inputs(count: int) -> Any:
    leaves = [{"kind": "leaf", "index": index} for index in range(count)]
    return {"kind": "tuple", "items": [{"kind": "tuple", "items": leaves}, {"kind": "dict", "keys": [], "items": []}]}


def _flat_outputs(count: int) -> Any:
    leaves = [{"kind": "leaf", "index": index} for index in range(count)]
    return leaves[0] if count == 1 else {"kind": "tuple", "items": leaves}


def _parameters(graph: Graph) -> tuple[str, ...]:
    """Names of the positional arguments, where each of them is one tensor."""
    structure = graph.input_structure
    if structure is None:
        return tuple(value.name for value in graph.inputs)
    positional = structure["items"][0]["items"]
    if not all(item["kind"] == "leaf" for item in positional):
        return ()
    names = tuple(graph.inputs[item["index"]].name for item in positional)
    return names if not set(names) & set(structure["items"][1]["keys"]) else ()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
