"""CREPE and the speaker encoder in integers, and the speaker encoder with half of its weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.cases import audio
from benchmarks.cases.case import INTEGER, Case, Requirement, Workshop, alike
from benchmarks.cases.classification import apply
from whet.ir import Graph
from whet.ir.target import get_target
from whet.passes import Budget, Canonicalize, Context, Distill, QuantizeStatic, StructuredPruning


def _crepe_int8(graph: Graph, workshop: Workshop) -> Graph:
    context = Context(target=get_target("x86"), calibration=audio.pitch_calibration(), progress=workshop.progress)
    return apply(graph, [QuantizeStatic()], context)


def _voice_calibration() -> list[tuple[Tensor]]:
    return [(batch,) for batch in audio.voice_windows(test=False).split(8)]


def _voice_int8(graph: Graph, workshop: Workshop) -> Graph:
    """The first layer's projection stays float: it reads raw power, of which 8 bits keep the loudest bands only."""
    context = Context(target=get_target("x86"), calibration=_voice_calibration(), progress=workshop.progress)
    return apply(graph, [QuantizeStatic(exclude=("lstm.weight_ih_l0",))], context)


class _SpeechWindows:
    """Unlabelled windows of speech that the test does not hear, half of them of the test's kind.

    Six recordings of the test's kind are few: a student of them alone learns them by heart (a cosine of .95 to the
    teacher on them, .885 on the test's; .920 with shifted formants and other microphones). So the other half are
    letters and words of many other speakers.
    """

    def __init__(self, batch: int = 32, steps: int = 60) -> None:
        self._batch = batch
        self._steps = steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        sources = audio.voice_windows(test=False), audio.other_voices()
        for _ in range(self._steps):
            drawn = [torch.cat([_drawn(source, self._batch // 2) for source in sources]) for _ in range(2)]
            first, second = _other_voice(drawn[0]), _other_voice(drawn[1][torch.randperm(self._batch)])
            share = torch.rand((self._batch, 1, 1)).clamp_min(0.5)
            mixed = share * first + (1 - share) * second
            shift = int(torch.randint(audio.UTTERANCE_FRAMES, (1,)))
            noise = 10 ** torch.empty(self._batch, 1, 1).uniform_(-6, -3)
            floor = noise * torch.rand(mixed.shape)
            yield (mixed.roll(shift, dims=1) + floor,)


def _drawn(windows: Tensor, count: int) -> Tensor:
    return windows[torch.randint(len(windows), (count,))]


def _other_voice(mels: Tensor) -> Tensor:
    """Power in mel bands (N, frames, bands), moved by up to three, through another microphone, at another level."""
    count, _, bands = mels.shape
    place = torch.arange(bands) + torch.randint(-3, 4, (count, 1))
    moved = mels.gather(2, place.clamp(0, bands - 1)[:, None].expand_as(mels))
    # a few random decibels at five frequencies, and in between what lies between
    decibels = torch.randn(count, 1, 5) * 3
    microphone = torch.nn.functional.interpolate(decibels, size=bands, mode="linear", align_corners=True)
    loudness = torch.empty(count, 1, 1).uniform_(-6, 6)
    return moved * 10 ** ((microphone + loudness) / 10)


def _voice_pruned(graph: Graph, workshop: Workshop) -> Graph:
    context = Context(
        target=get_target("x86"),
        train=_SpeechWindows(),
        calibration=_voice_calibration(),
        progress=workshop.progress,
        original=graph,
    )
    recover = Distill(
        loss="cosine",
        alpha=0.0,
        # what every layer says at every frame teaches more than one embedding a window: 160 answers of 256 numbers
        features={"lstm": 1.0, "lstm_3": 1.0, "lstm_6": 1.0},
        epochs=30,
        optimizer="adamw",
        learning_rate=2e-3,
        checkpoint=str(workshop.folder / "recover"),
    )
    prune = StructuredPruning(criterion="l2", budget=Budget("parameters", 0.49), round_to=8)
    return apply(graph, [Canonicalize(), prune, recover], context)


CASES = (
    Case(
        "crepe-int8",
        "CREPE full, static int8",
        lambda workshop: audio.crepe_graph(),
        _crepe_int8,
        audio.compare_pitch,
        audio.pitch_inputs,
        (
            Requirement("median pitch within 2 cents", lambda result: abs(result.metrics[0].difference) <= 2.0),
            INTEGER,
        ),
        integer=True,
        committed=False,
    ),
    Case(
        "voice-int8",
        "VoiceEncoder (LSTM), static int8",
        lambda workshop: audio.voice_graph(),
        _voice_int8,
        audio.compare_voice,
        audio.voice_inputs,
        (alike(0.99), INTEGER),
        integer=True,
        committed=False,
    ),
    Case(
        "voice-prune2",
        "VoiceEncoder (LSTM), half of its weights removed, distilled",
        lambda workshop: audio.voice_graph(),
        _voice_pruned,
        audio.compare_voice,
        audio.voice_inputs,
        (
            Requirement(
                "at least 2 x fewer parameters", lambda result: result.parameters[0] >= 2 * result.parameters[1]
            ),
            alike(0.95),
        ),
        committed=False,
    ),
)
