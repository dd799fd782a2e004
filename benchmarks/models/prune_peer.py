"""The same models pruned by torch-pruning (Fang et al., DepGraph, CVPR 2023), where it is installed."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

NOT_INSTALLED = "not installed"


@dataclass
class PeerResult:
    """What torch-pruning made of a model: fractions of the parameters and multiply-adds that are left."""

    passed: bool = False
    reason: str = ""
    parameters: float | None = None
    flops: float | None = None


def installed() -> bool:
    """Whether torch-pruning can be imported."""
    return importlib.util.find_spec("torch_pruning") is not None


def prune_with_peer(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], ratio: float) -> PeerResult:
    """Prune every group by `ratio` with the L1 criterion, the layers that make the output left as they are.

    The same conditions hold as for whet: parameters and multiply-adds each fall by at least the ratio, and the pruned
    model runs. Attention heads and groups are not told to the peer: it gets the model and example inputs.
    """
    if not installed():
        return PeerResult(reason=NOT_INSTALLED)
    peer: Any = importlib.import_module("torch_pruning")
    model = copy.deepcopy(model).requires_grad_(True).eval()
    inputs: Any = {**_named(model, args), **kwargs} if kwargs else args if len(args) > 1 else args[0]
    try:
        macs, parameters = peer.utils.count_ops_and_params(model, inputs)
        pruner = peer.pruner.MetaPruner(
            model,
            inputs,
            importance=peer.importance.MagnitudeImportance(p=1),
            pruning_ratio=ratio,
            ignored_layers=_last_layers(model, args, kwargs),
        )
        pruner.step()
        with torch.no_grad():
            model(*args, **kwargs)
        macs_left, parameters_left = peer.utils.count_ops_and_params(model, inputs)
    except Exception as error:  # whatever the peer raises is its result
        return PeerResult(reason=f"{type(error).__name__}: {str(error)[:150]}")
    left = parameters_left / parameters, macs_left / macs
    passed = max(left) <= 1 - ratio
    return PeerResult(passed, "" if passed else f"parameters {left[0]:.2f}, FLOPs {left[1]:.2f} are left", *left)


def _named(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    names = model.forward.__code__.co_varnames[1 : 1 + len(args)]
    return dict(zip(names, args, strict=True))


def _last_layers(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[nn.Module]:
    """The linear layers and convolutions that have as many outputs as the model: they keep them."""
    with torch.no_grad():
        outputs = model(*args, **kwargs)
    scores = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    classes = scores.shape[-1]
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return [layer for layer in layers if layer.weight.shape[0] == classes]
