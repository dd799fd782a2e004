"""Architectures of torchvision with random weights: image classification, segmentation and video."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models.case import ModelCase
from benchmarks.models.randomize import seeded_build, seeded_normal

CLASSIFIERS: tuple[tuple[str, int], ...] = (
    ("alexnet", 224),
    ("resnet18", 224),
    ("resnet50", 224),
    ("resnext50_32x4d", 224),
    ("wide_resnet50_2", 224),
    ("vgg11", 224),
    ("vgg11_bn", 224),
    ("densenet121", 224),
    ("squeezenet1_1", 224),
    ("mobilenet_v2", 224),
    ("mobilenet_v3_small", 224),
    ("mobilenet_v3_large", 224),
    ("efficientnet_b0", 224),
    ("efficientnet_v2_s", 224),
    ("convnext_tiny", 224),
    ("swin_t", 224),
    ("swin_v2_t", 256),
    ("vit_b_16", 224),
    ("vit_b_32", 224),
    ("maxvit_t", 224),
    ("shufflenet_v2_x1_0", 224),
    ("googlenet", 224),
    ("inception_v3", 299),
    ("regnet_y_400mf", 224),
    ("regnet_x_400mf", 224),
    ("mnasnet1_0", 224),
)

SEGMENTATION: tuple[tuple[str, int], ...] = (
    ("deeplabv3_resnet50", 224),
    ("deeplabv3_mobilenet_v3_large", 224),
    ("fcn_resnet50", 224),
    ("lraspp_mobilenet_v3_large", 224),
)

# name, frames, picture side
VIDEO: tuple[tuple[str, int, int], ...] = (
    ("r3d_18", 8, 112),
    ("mc3_18", 8, 112),
    ("r2plus1d_18", 8, 112),
    ("s3d", 16, 224),
)

# torchvision initializes the weights of these with scipy distributions or needs auxiliary heads turned off.
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": True, "aux_logits": False},
    "inception_v3": {"init_weights": True, "aux_logits": False},
    "deeplabv3_resnet50": {"weights_backbone": None, "num_classes": 21},
    "deeplabv3_mobilenet_v3_large": {"weights_backbone": None, "num_classes": 21},
    "fcn_resnet50": {"weights_backbone": None, "num_classes": 21},
    "lraspp_mobilenet_v3_large": {"weights_backbone": None, "num_classes": 21},
}


@functools.cache
def define_missing_operators() -> Any:
    """Declare the operators of torchvision's compiled half, so that its Python half can be imported.

    torchvision's wheel links against a CUDA build of torch; beside a CPU build its library is not loaded, and
    its Python code fails on the meta kernel of `nms`. No model here calls it. The library object has to stay
    alive, which the cache does.
    """
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    make_library: Any = torch.library.Library
    library = make_library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def import_torchvision() -> Any:
    """torchvision, whichever build of torch is installed."""
    define_missing_operators()
    return importlib.import_module("torchvision")


def _build(name: str) -> nn.Module:
    models = import_torchvision().models
    return seeded_build(lambda: models.get_model(name, weights=None, **OPTIONS.get(name, {})))


def _image(side: int) -> tuple[Tensor]:
    return (seeded_normal(1, 3, side, side),)


def _video(frames: int, side: int) -> tuple[Tensor]:
    return (seeded_normal(1, 3, frames, side, side),)


def _case(name: str, inputs: functools.partial[tuple[Tensor]], classifier: bool) -> ModelCase:
    return ModelCase(name, "torchvision", functools.partial(_build, name), inputs, classifier=classifier)


def torchvision_cases() -> list[ModelCase]:
    """Every torchvision architecture of the zoo."""
    return [
        *(_case(name, functools.partial(_image, side), True) for name, side in CLASSIFIERS),
        *(_case(name, functools.partial(_image, side), False) for name, side in SEGMENTATION),
        *(_case(name, functools.partial(_video, frames, side), True) for name, frames, side in VIDEO),
    ]
