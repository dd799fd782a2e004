"""The architectures that structured pruning is tried on: classifiers of torchvision, timm and transformers."""

from __future__ import annotations

import functools
from dataclasses import replace

from torch import Tensor, nn

from benchmarks.models.case import ModelCase
from benchmarks.models.randomize import seeded_build, seeded_normal
from benchmarks.models.timm_models import import_timm, timm_cases
from benchmarks.models.torchvision_models import OPTIONS, import_torchvision
from benchmarks.models.transformers_models import (
    ENCODER,
    PICTURE,
    Row,
    masked_text,
    picture,
    transformers_cases,
)

CLASSES = 1000
SIDE = 224
SIDES = {"inception_v3": 299, "swin_v2_t": 256, "swin_v2_s": 256, "swin_v2_b": 256}

LABELS = {"num_labels": 10}
TEXT = {**ENCODER, **LABELS}
IMAGE = {**PICTURE, **LABELS}

# With a classifier on top: the output of a bare encoder is the width that is to be pruned.
ENCODERS: dict[str, Row] = {
    "bert": Row("BertForSequenceClassification", "BertConfig", TEXT, masked_text, classifier=True),
    "roberta": Row("RobertaForSequenceClassification", "RobertaConfig", TEXT, masked_text, classifier=True),
    "distilbert": Row(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 1000, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, **LABELS},
        masked_text,
        classifier=True,
    ),
    "albert": Row(
        "AlbertForSequenceClassification", "AlbertConfig", {**TEXT, "embedding_size": 32}, masked_text, classifier=True
    ),
    "electra": Row(
        "ElectraForSequenceClassification",
        "ElectraConfig",
        {**TEXT, "embedding_size": 32},
        masked_text,
        classifier=True,
    ),
    "mpnet": Row("MPNetForSequenceClassification", "MPNetConfig", TEXT, masked_text, classifier=True),
    "xlm_roberta": Row("XLMRobertaForSequenceClassification", "XLMRobertaConfig", TEXT, masked_text, classifier=True),
    "camembert": Row("CamembertForSequenceClassification", "CamembertConfig", TEXT, masked_text, classifier=True),
    "deberta_v2": Row(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
        masked_text,
        classifier=True,
    ),
    "squeezebert": Row(
        "SqueezeBertForSequenceClassification",
        "SqueezeBertConfig",
        {**TEXT, "embedding_size": 64},
        masked_text,
        classifier=True,
    ),
    "modernbert": Row(
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        {
            **TEXT,
            "pad_token_id": 0,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "eos_token_id": 2,
            "bos_token_id": 1,
        },
        masked_text,
        classifier=True,
    ),
    "vit": Row("ViTForImageClassification", "ViTConfig", IMAGE, picture, classifier=True),
    "deit": Row("DeiTForImageClassification", "DeiTConfig", IMAGE, picture, classifier=True),
    "beit": Row("BeitForImageClassification", "BeitConfig", IMAGE, picture, classifier=True),
    "dinov2": Row("Dinov2ForImageClassification", "Dinov2Config", IMAGE, picture, classifier=True),
    "swin": Row(
        "SwinForImageClassification",
        "SwinConfig",
        {
            "image_size": 64,
            "patch_size": 4,
            "embed_dim": 32,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
            **LABELS,
        },
        picture,
        classifier=True,
    ),
}


def _torchvision(name: str) -> nn.Module:
    models = import_torchvision().models
    return seeded_build(lambda: models.get_model(name, weights=None, **OPTIONS.get(name, {})))


def _picture(side: int) -> tuple[Tensor]:
    return (seeded_normal(1, 3, side, side),)


def _timm(name: str) -> nn.Module:
    """With a classifier, also where the model's own default is to end in features."""
    timm = import_timm()
    return seeded_build(lambda: timm.create_model(name, pretrained=False, num_classes=CLASSES))


def torchvision_classifiers() -> list[ModelCase]:
    """Every classification model that torchvision lists."""
    models = import_torchvision().models
    return [
        ModelCase(
            name,
            "torchvision",
            functools.partial(_torchvision, name),
            functools.partial(_picture, SIDES.get(name, SIDE)),
            classifier=True,
        )
        for name in models.list_models(module=models)
    ]


def timm_classifiers() -> list[ModelCase]:
    """One classifier of each of timm's families."""
    return [replace(case, build=functools.partial(_timm, case.name.removeprefix("timm/"))) for case in timm_cases()]


def encoder_cases() -> list[ModelCase]:
    """Encoders of transformers, with classifiers on top."""
    return transformers_cases(ENCODERS)


def prune_cases() -> dict[str, ModelCase]:
    """Every case by its unique name."""
    return {case.name: case for case in (*torchvision_classifiers(), *timm_classifiers(), *encoder_cases())}
