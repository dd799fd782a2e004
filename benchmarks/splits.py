"""The labelled pictures of the compression cases as tensors: training, calibration, validation and test, disjoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import datasets
from benchmarks.datasets import Bytes, Labelled

HELD_OUT = 1000
"""Pictures for calibration, and as many for validation: the last ones of the training set, never trained on."""

CIFAR_MEAN = np.array([0.4914, 0.4822, 0.4465], dtype=np.float32)
CIFAR_STD = np.array([0.2470, 0.2435, 0.2616], dtype=np.float32)
MNIST_MEAN, MNIST_STD = np.float32(0.1307), np.float32(0.3081)


@dataclass(frozen=True)
class Part:
    """Pictures (N, C, H, W), normalized float32, and labels (N,), int64."""

    images: Tensor
    labels: Tensor

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """In order; the last may be smaller."""
        return list(zip(self.images.split(size), self.labels.split(size), strict=True))


@dataclass(frozen=True)
class Splits:
    """Disjoint parts; calibration and validation come from the end of what the dataset calls training."""

    train: Part
    calibration: Part
    validation: Part
    test: Part


def mnist() -> Splits:
    """58 000 + 1000 + 1000 + 10 000 digits, (N, 1, 28, 28)."""
    return _split(datasets.mnist(), lambda images: (_scaled(images) - MNIST_MEAN)[:, None] / MNIST_STD)


def cifar10() -> Splits:
    """48 000 + 1000 + 1000 + 10 000 photographs, (N, 3, 32, 32)."""
    return _split(datasets.cifar10(), lambda images: ((_scaled(images) - CIFAR_MEAN) / CIFAR_STD).transpose(0, 3, 1, 2))


def _scaled(images: Bytes) -> datasets.Floats:
    return images.astype(np.float32) / np.float32(255)


def _split(data: Labelled, prepare: Callable[[Bytes], datasets.Floats]) -> Splits:
    images = torch.from_numpy(np.ascontiguousarray(prepare(data.train_images)))
    labels = torch.from_numpy(data.train_labels)
    first, second = len(images) - 2 * HELD_OUT, len(images) - HELD_OUT
    test = Part(torch.from_numpy(np.ascontiguousarray(prepare(data.test_images))), torch.from_numpy(data.test_labels))
    return Splits(
        Part(images[:first], labels[:first]),
        Part(images[first:second], labels[first:second]),
        Part(images[second:], labels[second:]),
        test,
    )


def crop_and_flip(images: Tensor, padding: int = 4) -> Tensor:
    """Shift each picture by up to `padding` pixels (zeros come in) and mirror half of them."""
    return _moved(images, padding, 0.0, torch.rand((len(images), 1)) < 0.5)


def shift(images: Tensor, by: int = 1) -> Tensor:
    """Shift each picture by up to `by` pixels each way; what comes in is the darkest pixel of all."""
    return _moved(images, by, float(images.min()), torch.zeros((len(images), 1), dtype=torch.bool))


def _moved(images: Tensor, padding: int, fill: float, mirrored: Tensor) -> Tensor:
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4, value=fill)
    top, left = (torch.randint(0, 2 * padding + 1, (count, 1)) for _ in range(2))
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(mirrored, width - 1 - columns, columns) + left
    rows = torch.arange(height) + top
    picture = torch.arange(count)[:, None, None]
    # advanced indices around a slice come first in the result: (count, height, width, channels)
    return padded[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Shuffled:
    """Training batches in another order each epoch, drawn from torch's own generator, which who trains seeds.

    Args:
        part: what to draw from.
        size: of a batch; what is left over at the end of an epoch is not used.
        augment: whether to shift and mirror the pictures.
    """

    def __init__(self, part: Part, size: int = 128, augment: bool = False) -> None:
        self._part = part
        self._size = size
        self._augment = augment

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._part.labels) // self._size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(pictures, labels) of each batch."""
        order = torch.randperm(len(self._part.labels))
        for step in range(len(self)):
            chosen = order[step * self._size : (step + 1) * self._size]
            images = self._part.images[chosen]
            yield crop_and_flip(images) if self._augment else images, self._part.labels[chosen]
