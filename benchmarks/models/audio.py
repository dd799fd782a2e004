"""Two audio networks in plain PyTorch, with the key names of published weights, and their preprocessing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

PITCH_BINS = 360
CENTS_PER_BIN = 20
FRAME = 1024
SAMPLE_RATE = 16_000

# capacity: output channels of the six convolutions
CREPE_CHANNELS: dict[str, tuple[int, ...]] = {
    "full": (1024, 128, 128, 128, 256, 512),
    "tiny": (128, 16, 16, 16, 32, 64),
}


class Crepe(nn.Module):
    """CREPE (Kim et al. 2018, arXiv:1802.06182): frames (N, 1024) at 16 kHz to pitch salience (N, 360)."""

    def __init__(self, capacity: str) -> None:
        super().__init__()
        inputs = 1
        for number, outputs in enumerate(CREPE_CHANNELS[capacity], start=1):
            kernel, stride = (512, 4) if number == 1 else (64, 1)
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(outputs, eps=0.001))
            inputs = outputs
        # Six halvings of 1024 / 4 samples leave four positions.
        self.features = 4 * inputs
        self.classifier = nn.Linear(self.features, PITCH_BINS)

    def forward(self, frames: Tensor) -> Tensor:
        """Salience of each 20-cent bin, in (0, 1)."""
        x = frames[:, None, :, None]
        for number in range(1, 7):
            before, after = (254, 254) if number == 1 else (31, 32)
            x = functional.pad(x, (0, 0, before, after))
            x = functional.relu(self.get_submodule(f"conv{number}")(x))
            x = self.get_submodule(f"conv{number}_BN")(x)
            x = functional.max_pool2d(x, (2, 1), (2, 1))
        flat = x.permute(0, 2, 1, 3).reshape(-1, self.features)
        return torch.sigmoid(self.classifier(flat))


def pitch_frames(samples: Tensor, hop: int = 160) -> Tensor:
    """Cut audio (count,) at 16 kHz into frames (N, 1024) of zero mean and unit deviation."""
    frames = samples.unfold(0, FRAME, hop)
    centred = frames - frames.mean(1, keepdim=True)
    return centred / centred.std(1, keepdim=True).clamp_min(1e-10)


def pitch_hertz(salience: Tensor) -> Tensor:
    """The frequency of the strongest bin: 20 cents a bin, bin 0 at 1997.38 cents above 10 Hz."""
    cents = salience.argmax(-1) * CENTS_PER_BIN + 1997.3794084376191
    return torch.as_tensor(10.0 * 2.0 ** (cents / 1200.0))


MEL_CHANNELS = 40
MEL_WINDOW = 400
MEL_HOP = 160
UTTERANCE_FRAMES = 160


class VoiceEncoder(nn.Module):
    """Speaker embedding (Wan et al. 2018, arXiv:1710.10467): mel frames (N, T, 40) to vectors (N, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MEL_CHANNELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.relu = nn.ReLU()

    def forward(self, mels: Tensor) -> Tensor:
        """The rectified projection of the last layer's last hidden state, scaled to length 1."""
        _, (hidden, _) = self.lstm(mels)
        raw = self.relu(self.linear(hidden[-1]))
        return torch.as_tensor(raw / torch.norm(raw, dim=1, keepdim=True))


def slaney_mel_filters(bins: int = MEL_WINDOW // 2 + 1, filters: int = MEL_CHANNELS) -> Tensor:
    """Triangular mel filters (filters, bins) of equal area on Slaney's scale: linear to 1 kHz, then log."""
    step, corner = 200.0 / 3.0, 1000.0
    log_step = torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27.0
    corner_mel = corner / step
    top = corner_mel + torch.log(torch.tensor(SAMPLE_RATE / 2 / corner, dtype=torch.float64)) / log_step
    mels = torch.linspace(0.0, float(top), filters + 2, dtype=torch.float64)
    edges = torch.where(mels < corner_mel, step * mels, corner * torch.exp(log_step * (mels - corner_mel)))
    frequencies = torch.linspace(0.0, SAMPLE_RATE / 2, bins, dtype=torch.float64)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    area = 2.0 / (edges[2:] - edges[:-2])
    return (torch.minimum(rising, falling).clamp_min(0.0) * area[:, None]).float()


def mel_frames(samples: Tensor, loudness: float = -30.0) -> Tensor:
    """Power mel spectrogram (T, 40) of audio (count,) at 16 kHz, brought up to `loudness` decibels first."""
    gain = 10.0 ** ((loudness - 10.0 * torch.log10(samples.square().mean())) / 20.0)
    louder = samples * gain.clamp_min(1.0)
    spectrum = torch.stft(
        louder,
        MEL_WINDOW,
        MEL_HOP,
        window=torch.hann_window(MEL_WINDOW),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    return (slaney_mel_filters() @ spectrum.abs().square()).T.contiguous()
