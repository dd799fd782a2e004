"""Tensor expressions of the layers of `benchmarks.kernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tvm import te, tirx

from whet.backends.tvm.kernels.conv import conv, pack_conv_weight, plan_conv
from whet.backends.tvm.kernels.cpu import has_masks
from whet.backends.tvm.kernels.depthwise import depthwise, depthwise_tile, pack_depthwise_weight
from whet.backends.tvm.kernels.dot import (
    dot_conv,
    dot_linear,
    pack_dot_conv_weight,
    pack_dot_linear_weight,
    plan_dot_conv,
    plan_dot_linear,
)
from whet.backends.tvm.kernels.linear import linear, linear_tile, pack_linear_weight
from whet.backends.tvm.kernels.windows import Window, window
from whet.ir.target import Target

if TYPE_CHECKING:
    from benchmarks.kernels import Layer


def expression(layer: Layer, target: Target) -> list[Any]:
    """Input, packed weight and output of a layer."""
    if layer.kernel == 0:
        return _dot_linear(layer, target) if layer.integer else _linear(layer, target)
    side = (layer.padding, layer.padding)
    geometry = window((layer.kernel,) * 2, (layer.stride,) * 2, (side, side))
    if layer.groups == layer.inputs:
        return _depthwise(layer, target, geometry)
    return _integer_conv(layer, target, geometry) if layer.integer else _conv(layer, target, geometry)


def _weight(layer: Layer) -> torch.Tensor:
    shape = (layer.outputs, layer.inputs // layer.groups, *(layer.kernel,) * (2 if layer.kernel else 0))
    return torch.zeros(shape, dtype=torch.int8 if layer.integer else torch.float32)


def _placeholder(tensor: torch.Tensor) -> Any:
    return te.placeholder(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), name="weight")


def _linear(layer: Layer, target: Target) -> list[Any]:
    x = te.placeholder((layer.side, layer.inputs), name="x")
    tile = linear_tile(target, x.shape, layer.outputs)
    weight = _placeholder(pack_linear_weight(_weight(layer), tile.block))
    return [x, weight, linear(x, weight, out_features=layer.outputs, tile=tile)]


def _dot_linear(layer: Layer, target: Target) -> list[Any]:
    x = te.placeholder((layer.side, layer.inputs), "uint8", name="x")
    plan = plan_dot_linear(target, x.shape, layer.outputs)
    weight = _placeholder(pack_dot_linear_weight(_weight(layer), plan))
    return [x, weight, dot_linear(x, weight, out_features=layer.outputs, plan=plan)]


def _image(layer: Layer) -> Any:
    return te.placeholder((1, layer.side, layer.side, layer.inputs), "uint8" if layer.integer else "float32", name="x")


def _conv(layer: Layer, target: Target, geometry: Window) -> list[Any]:
    x = _image(layer)
    plan = plan_conv(target, x.shape, layer.outputs, geometry, layer.groups)
    weight = _placeholder(pack_conv_weight(_weight(layer), plan.block, layer.groups, plan.groups))
    return [x, weight, conv(x, weight, geometry=geometry, out_channels=layer.outputs, plan=plan)]


def _integer_conv(layer: Layer, target: Target, geometry: Window) -> list[Any]:
    x = _image(layer)
    plan = plan_dot_conv(target, x.shape, layer.outputs, geometry, layer.groups)
    weight = _placeholder(pack_dot_conv_weight(_weight(layer), plan, layer.groups))
    return [x, weight, dot_conv(x, weight, geometry=geometry, out_channels=layer.outputs, plan=plan, zero_point=3)]


def _depthwise(layer: Layer, target: Target, geometry: Window) -> list[Any]:
    x = _image(layer)
    dtype = "int32" if layer.integer else "float32"
    tile = depthwise_tile(target, x.shape, layer.outputs, geometry, dtype)
    weight = _placeholder(pack_depthwise_weight(_weight(layer)))
    fill = tirx.const(3, "uint8") if layer.integer else None
    masked = not layer.integer and has_masks(target)
    y = depthwise(x, weight, geometry=geometry, tile=tile, pad_value=fill, accumulator=dtype, masked=masked)
    return [x, weight, y]
