"""CREPE on synthesized tones with noise, and the speaker encoder on speech."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from benchmarks import datasets
from benchmarks.cases.case import Metric, Module
from benchmarks.cases.classification import symbolic_batch
from benchmarks.models.audio import (
    CENTS_PER_BIN,
    FRAME,
    PITCH_BINS,
    SAMPLE_RATE,
    UTTERANCE_FRAMES,
    mel_frames,
    pitch_frames,
)
from benchmarks.models.trained import load_crepe, load_voice_encoder
from whet.ir import Graph

TONES = 300
NOISE_DECIBELS = (10.0, 40.0)
"""Signal-to-noise ratios of the tones."""
_FIRST_BIN_CENTS = 1997.3794084376191
_AROUND = 4
"""Bins on each side of the strongest that the decoded pitch averages (Kim et al. 2018, section 2)."""

TEST_RECORDINGS = (2, 4, 6, 9)
"""Of the ten recordings, two of each speaker are kept for the test."""
_WINDOW_STEP = 20


def crepe_graph() -> Graph:
    """CREPE full for any number of frames."""
    return symbolic_batch(load_crepe("full"), torch.zeros(2, FRAME))


@functools.cache
def tones(seed: int, count: int = TONES) -> tuple[Tensor, np.ndarray]:
    """Frames (count, 1024) of harmonic tones of 60 to 1000 Hz in white noise, and their pitch in cents above 10 Hz."""
    generator = np.random.default_rng(seed)
    hertz = 60.0 * (1000.0 / 60.0) ** generator.random(count)
    time = np.arange(FRAME) / SAMPLE_RATE
    frames = np.zeros((count, FRAME))
    for row, frequency in enumerate(hertz):
        for harmonic in range(1, 1 + min(8, int(SAMPLE_RATE / 2 / frequency))):
            phase = 2 * np.pi * generator.random()
            frames[row] += generator.random() / harmonic * np.sin(2 * np.pi * harmonic * frequency * time + phase)
        frames[row] /= frames[row].std()
        frames[row] += generator.normal(size=FRAME) * 10 ** (-generator.uniform(*NOISE_DECIBELS) / 20)
    cents = 1200 * np.log2(hertz / 10.0)
    return torch.cat([pitch_frames(torch.from_numpy(frame).float()) for frame in frames]), cents


def decode_cents(salience: np.ndarray) -> np.ndarray:
    """Pitch in cents above 10 Hz: the mean of the bins around the strongest, weighted by salience; (N, 360) -> (N,)."""
    centres = np.arange(PITCH_BINS) * CENTS_PER_BIN + _FIRST_BIN_CENTS
    strongest = salience.argmax(1)
    distance = np.abs(np.arange(PITCH_BINS)[None] - strongest[:, None])
    weights = np.where(distance <= _AROUND, salience, 0.0)
    return np.asarray((weights * centres).sum(1) / weights.sum(1))


def compare_pitch(original: Module, compressed: Module) -> list[Metric]:
    """Median distance to the true pitch, in cents, negated: larger is better."""
    frames, cents = tones(seed=1)
    errors = []
    for module in (original, compressed):
        salience = np.concatenate([module(frames[row : row + 1].numpy()) for row in range(len(frames))])
        errors.append(np.abs(decode_cents(salience) - cents))
    return [Metric("median pitch error, cents, negated", -float(np.median(errors[0])), -float(np.median(errors[1])))]


def pitch_calibration() -> list[tuple[Tensor]]:
    """Other tones than the test's, and frames of speech."""
    speech = pitch_frames(torch.from_numpy(datasets.speech()[-1].samples))[::20]
    frames = torch.cat([tones(seed=2, count=64)[0], speech])
    return [(batch,) for batch in frames.split(8)]


def pitch_inputs() -> Mapping[str, np.ndarray]:
    """One frame."""
    return {"frames": tones(seed=1)[0][:1].numpy()}


def voice_graph() -> Graph:
    """The speaker encoder for any number of windows of 1.6 s."""
    return symbolic_batch(load_voice_encoder(), torch.zeros(2, UTTERANCE_FRAMES, 40))


@functools.cache
def voice_windows(test: bool) -> Tensor:
    """Windows (N, 160, 40) of the recordings for the test, or of all others."""
    recordings = datasets.speech()
    chosen = [index for index in range(len(recordings)) if (index in TEST_RECORDINGS) == test]
    windows = []
    for index in chosen:
        samples = torch.from_numpy(recordings[index].samples)
        # a recording shorter than a window is heard again from its start
        repeats = 1 + UTTERANCE_FRAMES * 160 // len(samples)
        mels = mel_frames(samples.repeat(repeats))
        windows.append(mels.unfold(0, UTTERANCE_FRAMES, _WINDOW_STEP).transpose(1, 2))
    return torch.cat(windows).contiguous()


@functools.cache
def other_voices() -> Tensor:
    """Windows (N, 160, 40) of some 45 other speakers, who say letters and words one after the other."""
    said: dict[str, list[Tensor]] = {}
    for item in datasets.letters_and_words():
        said.setdefault(item.speaker, []).append(torch.from_numpy(item.samples))
    mels = [mel_frames(torch.cat(recordings)) for recordings in said.values()]
    windows = [mel.unfold(0, UTTERANCE_FRAMES, UTTERANCE_FRAMES // 2).transpose(1, 2) for mel in mels]
    return torch.cat(windows).contiguous()


def compare_voice(original: Module, compressed: Module) -> list[Metric]:
    """Cosine between the embeddings of the two modules, window by window."""
    windows = voice_windows(test=True)
    first, second = (
        torch.from_numpy(np.concatenate([module(windows[row : row + 1].numpy()) for row in range(len(windows))]))
        for module in (original, compressed)
    )
    cosine = torch.nn.functional.cosine_similarity(first, second)
    return [
        Metric("mean cosine to float", 1.0, float(cosine.mean())),
        Metric("lowest cosine to float", 1.0, float(cosine.min())),
    ]


def voice_inputs() -> Mapping[str, np.ndarray]:
    """One window."""
    return {"mels": voice_windows(test=True)[:1].numpy()}
