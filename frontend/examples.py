"""Finding example inputs on a model that declares them itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from whet.errors import CaptureError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def find_example_inputs(model: torch.nn.Module) -> Inputs:
    """Positional and keyword inputs that the model names. Raises CaptureError that says what to pass."""
    for source in (_graph_metadata, _lightning, _timm, _transformers):
        found = source(model)
        if found is not None:
            return found
    raise CaptureError(
        f"{type(model).__name__} does not say what its inputs look like: pass example_inputs=(tensor, ...) "
        f"with the "
        "shapes and dtypes that it will run on, e.g. example_inputs=(torch.randn(1, 3, 224, 224),)"
    )


def _graph_metadata(model: torch.nn.Module) -> Inputs | None:
    """A GraphModule whose placeholders carry their values or shapes (fx tracing with propagation, export)."""
    if not isinstance(model, torch.fx.GraphModule):
        return None
    inputs = []
    for node in model.graph.nodes:
        if node.op != "placeholder":
            continue
        described = node.meta.get("val", node.meta.get("example_value", node.meta.get("tensor_meta")))
        if described is None or not hasattr(described, "shape"):
            return None
        inputs.append(_random(tuple(int(size) for size in described.shape), described.dtype))
    return tuple(inputs), {}


def _lightning(model: torch.nn.Module) -> Inputs | None:
    declared = getattr(model, "example_input_array", None)
    if declared is None:
        return None
    if isinstance(declared, dict):
        return (), dict(declared)
    return (tuple(declared) if isinstance(declared, (tuple, list)) else (declared,)), {}


def _timm(model: torch.nn.Module) -> Inputs | None:
    config = getattr(model, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
    return None if size is None else ((_random((1, *size), torch.float32),), {})


def _transformers(model: torch.nn.Module) -> Inputs | None:
    declared: Callable[..., Any] | Any = getattr(model, "dummy_inputs", None)
    if not isinstance(declared, dict) or not declared:
        return None
    inputs = dict(declared)
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" in parameters and getattr(getattr(model, "config", None), "use_cache", False):
        inputs["use_cache"] = False  # the cache that a decoder returns is an object of its own, no tensor
    return (), inputs


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.zeros(shape, dtype=dtype)
