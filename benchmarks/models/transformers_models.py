"""Architectures of transformers with small configurations and random weights.

Each row names the model class, the configuration class with its options, and the inputs. Decoders run without
a cache (`use_cache=False`): a cache object is no tensor, and one forward pass over the prompt is what is
compared.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models.case import ModelCase, no_kwargs
from benchmarks.models.randomize import seeded_build, seeded_normal, seeded_tokens, strengthen
from benchmarks.models.torchvision_models import import_torchvision

VOCABULARY = 1000
TOKENS = 24

ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
DECODER = {**ENCODER, "use_cache": False}
GROUPED = {**DECODER, "num_key_value_heads": 2}
PICTURE = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


@dataclass(frozen=True)
class Row:
    """One architecture: `model` and `config` are class names in transformers."""

    model: str
    config: str
    options: Mapping[str, Any]
    inputs: Callable[[], tuple[Any, ...]]
    kwargs: Callable[[], Mapping[str, Any]] = field(default=no_kwargs)
    classifier: bool = False


def _tokens() -> Tensor:
    return seeded_tokens(VOCABULARY, 2, TOKENS)


def _mask() -> Tensor:
    """The second sentence of the batch is padded by a third, so that masks matter."""
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    mask[1, TOKENS - TOKENS // 3 :] = 0
    return mask


def text() -> tuple[Tensor]:
    """Token ids (2, 24)."""
    return (_tokens(),)


def masked_text() -> tuple[Tensor, Tensor]:
    """Token ids and their padding mask, (2, 24) each."""
    return (_tokens(), _mask())


def padding() -> Mapping[str, Tensor]:
    """The padding mask by name, for models whose second positional argument is something else."""
    return {"attention_mask": _mask()}


def decoder_tokens() -> Mapping[str, Tensor]:
    """Target-side token ids (2, 8)."""
    return {"decoder_input_ids": seeded_tokens(VOCABULARY, 2, 8)}


def picture(side: int = 64) -> tuple[Tensor]:
    """One picture (1, 3, side, side)."""
    return (seeded_normal(1, 3, side, side),)


def picture_and_text() -> Mapping[str, Tensor]:
    """Token ids, mask and one picture, for a two-tower model."""
    return {"input_ids": _tokens(), "attention_mask": _mask(), "pixel_values": seeded_normal(1, 3, 64, 64)}


def no_inputs() -> tuple[()]:
    """No positional arguments."""
    return ()


def waveform() -> tuple[Tensor]:
    """One second of audio at 4 kHz, (1, 4000)."""
    return (seeded_normal(1, 4000),)


def mel_features() -> tuple[Tensor]:
    """Log-mel features (1, 80, 128)."""
    return (seeded_normal(1, 80, 128),)


def series() -> tuple[Tensor]:
    """A multivariate time series (2, 64 steps, 3 channels)."""
    return (seeded_normal(2, 64, 3),)


AUDIO = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": (32, 32, 32),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 40,
}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "use_cache": False,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
    "decoder_start_token_id": 0,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "use_cache": False,
}
TOWER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}

ROWS: Mapping[str, Row] = {
    "bert": Row("BertForSequenceClassification", "BertConfig", ENCODER, masked_text, classifier=True),
    "distilbert": Row(
        "DistilBertModel",
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
        masked_text,
    ),
    "roberta": Row("RobertaForMaskedLM", "RobertaConfig", ENCODER, masked_text),
    "xlm_roberta": Row("XLMRobertaModel", "XLMRobertaConfig", ENCODER, masked_text),
    "deberta": Row(
        "DebertaModel",
        "DebertaConfig",
        {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 32},
        masked_text,
    ),
    "deberta_v2": Row(
        "DebertaV2Model",
        "DebertaV2Config",
        {
            **ENCODER,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
        masked_text,
    ),
    "albert": Row("AlbertModel", "AlbertConfig", {**ENCODER, "embedding_size": 32}, masked_text),
    "electra": Row("ElectraModel", "ElectraConfig", {**ENCODER, "embedding_size": 32}, masked_text),
    "mpnet": Row("MPNetModel", "MPNetConfig", ENCODER, masked_text),
    "modernbert": Row(
        "ModernBertModel",
        "ModernBertConfig",
        {
            **ENCODER,
            "pad_token_id": 0,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "eos_token_id": 2,
            "bos_token_id": 1,
        },
        masked_text,
    ),
    "squeezebert": Row("SqueezeBertModel", "SqueezeBertConfig", {**ENCODER, "embedding_size": 64}, masked_text),
    "mobilebert": Row(
        "MobileBertModel",
        "MobileBertConfig",
        {**ENCODER, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
        masked_text,
    ),
    "gpt2": Row("GPT2LMHeadModel", "GPT2Config", GPT2, text, padding),
    "gpt_neox": Row("GPTNeoXForCausalLM", "GPTNeoXConfig", DECODER, text),
    "opt": Row(
        "OPTForCausalLM",
        "OPTConfig",
        {**DECODER, "ffn_dim": 128, "word_embed_proj_dim": 64},
        masked_text,
    ),
    "bloom": Row(
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4, "use_cache": False},
        text,
        padding,
    ),
    "llama": Row("LlamaForCausalLM", "LlamaConfig", GROUPED, text),
    "llama_masked": Row("LlamaModel", "LlamaConfig", GROUPED, masked_text),
    "mistral": Row("MistralForCausalLM", "MistralConfig", {**GROUPED, "sliding_window": 8}, text),
    "qwen2": Row("Qwen2ForCausalLM", "Qwen2Config", GROUPED, text),
    "qwen3": Row("Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, "head_dim": 16}, text),
    "gemma2": Row("Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, "head_dim": 16, "sliding_window": 8}, text),
    "phi": Row("PhiForCausalLM", "PhiConfig", GROUPED, text),
    "mixtral": Row(
        "MixtralForCausalLM",
        "MixtralConfig",
        {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
        text,
    ),
    "t5": Row("T5ForConditionalGeneration", "T5Config", T5, masked_text, decoder_tokens),
    "t5_encoder": Row("T5EncoderModel", "T5Config", T5, masked_text),
    "bart": Row(
        "BartForConditionalGeneration",
        "BartConfig",
        {**SEQ2SEQ, "max_position_embeddings": 64},
        masked_text,
        decoder_tokens,
    ),
    "marian": Row(
        "MarianMTModel",
        "MarianConfig",
        {
            **SEQ2SEQ,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
            "forced_eos_token_id": None,
        },
        masked_text,
        decoder_tokens,
    ),
    "mamba": Row(
        "MambaForCausalLM",
        "MambaConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 8,
            "use_cache": False,
        },
        text,
    ),
    "vit": Row("ViTForImageClassification", "ViTConfig", {**PICTURE, "num_labels": 10}, picture, classifier=True),
    "deit": Row("DeiTForImageClassification", "DeiTConfig", {**PICTURE, "num_labels": 10}, picture, classifier=True),
    "beit": Row("BeitForImageClassification", "BeitConfig", {**PICTURE, "num_labels": 10}, picture, classifier=True),
    "dinov2": Row("Dinov2Model", "Dinov2Config", PICTURE, picture),
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
            "num_labels": 10,
        },
        picture,
        classifier=True,
    ),
    "convnext": Row(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64], "num_labels": 10},
        picture,
        classifier=True,
    ),
    "mobilevit": Row(
        "MobileViTForImageClassification",
        "MobileViTConfig",
        {"hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [16, 16, 24, 32, 48, 64, 128], "num_labels": 10},
        functools.partial(picture, 128),
        classifier=True,
    ),
    "segformer": Row(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [16, 32, 40, 64],
            "num_attention_heads": [1, 2, 5, 8],
            "decoder_hidden_size": 64,
            "num_labels": 10,
        },
        picture,
    ),
    "resnet": Row(
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_labels": 10},
        picture,
        classifier=True,
    ),
    "dpt": Row(
        "DPTForDepthEstimation",
        "DPTConfig",
        {
            **PICTURE,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 32, 48, 64],
            "fusion_hidden_size": 32,
        },
        picture,
    ),
    "clip": Row(
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {
                **TOWER,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": 64,
                "eos_token_id": 2,
            },
            "vision_config": {**TOWER, "image_size": 64, "patch_size": 8},
            "projection_dim": 32,
        },
        no_inputs,
        picture_and_text,
    ),
    "siglip": Row(
        "SiglipVisionModel",
        "SiglipVisionConfig",
        {**TOWER, "image_size": 64, "patch_size": 8},
        picture,
    ),
    "wav2vec2": Row("Wav2Vec2ForCTC", "Wav2Vec2Config", AUDIO, waveform),
    "hubert": Row("HubertModel", "HubertConfig", AUDIO, waveform),
    "whisper": Row(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **SEQ2SEQ,
            "num_mel_bins": 80,
            "max_source_positions": 64,
            "max_target_positions": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        mel_features,
        decoder_tokens,
    ),
    "patchtst": Row(
        "PatchTSTForPrediction",
        "PatchTSTConfig",
        {
            "num_input_channels": 3,
            "context_length": 64,
            "prediction_length": 8,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 64,
        },
        series,
    ),
}


def import_transformers() -> Any:
    """transformers; torchvision, where it is installed, is made importable first: some of its models import it."""
    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()
    return importlib.import_module("transformers")


def _build(row: Row) -> nn.Module:
    transformers = import_transformers()
    config = getattr(transformers, row.config)(**row.options)
    model = seeded_build(lambda: getattr(transformers, row.model)(config))
    strengthen(model)
    return model


def transformers_cases(rows: Mapping[str, Row] = ROWS) -> list[ModelCase]:
    """Every transformers architecture of the zoo, or of other rows."""
    return [
        ModelCase(
            f"transformers/{name}",
            "transformers",
            functools.partial(_build, row),
            row.inputs,
            row.kwargs,
            classifier=row.classifier,
        )
        for name, row in rows.items()
    ]
