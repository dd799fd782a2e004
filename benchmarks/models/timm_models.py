"""Architectures of timm with random weights: one (small) model from each of many families."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from torch import Tensor, nn

from benchmarks.models.case import ModelCase
from benchmarks.models.randomize import seeded_build, seeded_normal
from benchmarks.models.torchvision_models import import_torchvision

# family (the module of timm.models that defines it), model
FAMILIES: tuple[tuple[str, str], ...] = (
    ("beit", "beit_base_patch16_224"),
    ("byoanet", "botnet26t_256"),
    ("byobnet", "gernet_s"),
    ("cait", "cait_xxs24_224"),
    ("coat", "coat_lite_tiny"),
    ("convit", "convit_tiny"),
    ("convmixer", "convmixer_1024_20_ks9_p14"),
    ("convnext", "convnext_atto"),
    ("crossvit", "crossvit_tiny_240"),
    ("cspnet", "cspresnet50"),
    ("davit", "davit_tiny"),
    ("deit", "deit_tiny_distilled_patch16_224"),
    ("densenet", "densenetblur121d"),
    ("dla", "dla46_c"),
    ("dpn", "dpn48b"),
    ("edgenext", "edgenext_xx_small"),
    ("efficientformer", "efficientformer_l1"),
    ("efficientformer_v2", "efficientformerv2_s0"),
    ("efficientnet", "efficientnet_lite0"),
    ("efficientvit_mit", "efficientvit_b0"),
    ("efficientvit_msra", "efficientvit_m0"),
    ("eva", "eva02_tiny_patch14_224"),
    ("fastvit", "fastvit_t8"),
    ("focalnet", "focalnet_tiny_srf"),
    ("gcvit", "gcvit_xxtiny"),
    ("ghostnet", "ghostnet_100"),
    ("hardcorenas", "hardcorenas_a"),
    ("hgnet", "hgnetv2_b0"),
    ("hiera", "hiera_tiny_224"),
    ("hrnet", "hrnet_w18_small"),
    ("inception_next", "inception_next_atto"),
    ("inception_v3", "inception_v3"),
    ("inception_v4", "inception_v4"),
    ("levit", "levit_128s"),
    ("mambaout", "mambaout_femto"),
    ("maxxvit", "coatnet_nano_rw_224"),
    ("metaformer", "poolformerv2_s12"),
    ("mlp_mixer", "mixer_s32_224"),
    ("mobilenetv3", "mobilenetv4_conv_small"),
    ("mobilevit", "mobilevit_xxs"),
    ("mvitv2", "mvitv2_tiny"),
    ("nest", "nest_tiny"),
    ("nextvit", "nextvit_small"),
    ("nfnet", "nf_regnet_b0"),
    ("pit", "pit_ti_224"),
    ("pvt_v2", "pvt_v2_b0"),
    ("rdnet", "rdnet_tiny"),
    ("regnet", "regnetz_005"),
    ("repghost", "repghostnet_050"),
    ("repvit", "repvit_m0_9"),
    ("res2net", "res2net50_26w_4s"),
    ("resnest", "resnest14d"),
    ("resnet", "resnet26d"),
    ("resnetv2", "resnetv2_50"),
    ("rexnet", "rexnet_100"),
    ("selecsls", "selecsls42b"),
    ("senet", "legacy_seresnet18"),
    ("sequencer", "sequencer2d_s"),
    ("shvit", "shvit_s1"),
    ("sknet", "skresnet18"),
    ("starnet", "starnet_s1"),
    ("swiftformer", "swiftformer_xs"),
    ("swin_transformer", "swin_tiny_patch4_window7_224"),
    ("swin_transformer_v2", "swinv2_tiny_window8_256"),
    ("tiny_vit", "tiny_vit_5m_224"),
    ("tnt", "tnt_s_legacy_patch16_224"),
    ("tresnet", "tresnet_m"),
    ("twins", "twins_svt_small"),
    ("vgg", "vgg11_bn"),
    ("visformer", "visformer_tiny"),
    ("vision_transformer", "vit_tiny_patch16_224"),
    ("vision_transformer_relpos", "vit_relpos_small_patch16_224"),
    ("volo", "volo_d1_224"),
    ("vovnet", "ese_vovnet19b_dw"),
    ("xception", "legacy_xception"),
    ("xcit", "xcit_nano_12_p16_224"),
)


def import_timm() -> Any:
    """timm, after torchvision has been made importable for it."""
    import_torchvision()
    return importlib.import_module("timm")


def _build(name: str) -> nn.Module:
    timm = import_timm()
    return seeded_build(lambda: timm.create_model(name, pretrained=False))


def _inputs(name: str) -> tuple[Tensor]:
    """A picture of the size that the model's own default configuration names."""
    channels, height, width = import_timm().get_pretrained_cfg(name).input_size
    return (seeded_normal(1, channels, height, width),)


def timm_cases() -> list[ModelCase]:
    """One case a family; the name carries a prefix because torchvision uses some of the same names."""
    return [
        ModelCase(
            f"timm/{name}",
            "timm",
            functools.partial(_build, name),
            functools.partial(_inputs, name),
            classifier=True,
        )
        for _, name in FAMILIES
    ]
