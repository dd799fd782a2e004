"""The inputs that a command line gives to a bundle: files of numpy, or random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

from whet.errors import InputError
from whet.runtime.dimensions import parse
from whet.runtime.dtypes import DTYPES
from whet.runtime.manifest import Manifest, TensorSpec
from whet.runtime.structure import unflatten

Files = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=FILE.npy | FILE.npz]...", help="Inputs by name; without any, random numbers."),
]
Sizes = Annotated[
    list[str] | None, typer.Option("--size", metavar="NAME=N", help="Symbolic dimensions of random inputs.")
]
Threads = Annotated[int | None, typer.Option(help="Cores to use; by default all physical ones.")]

_LARGEST_RANDOM_INTEGER: Final = 2
"""Integers are mostly indices, of tables that may be as small as two."""


def read_inputs(manifest: Manifest, files: Sequence[str], sizes: Sequence[str], seed: int = 0) -> tuple[Any, Any]:
    """Positional and keyword arguments for a bundle. Raises InputError that names the file or the input."""
    if files and sizes:
        raise InputError("--size is for random inputs; those in files have a size")
    leaves = _from_files(manifest, files) if files else _random(manifest, _numbers(sizes), seed)
    args, kwargs = unflatten(manifest.input_structure, leaves)
    return args, kwargs


def _from_files(manifest: Manifest, files: Sequence[str]) -> list[np.ndarray[Any, Any]]:
    given: dict[str, np.ndarray[Any, Any]] = {}
    names = [item.name for item in manifest.inputs]
    for text in files:
        name, equals, path = text.partition("=")
        if equals:
            given[name] = _array(path)
        elif Path(text).suffix == ".npz":
            given |= _archive(text)
        elif len(names) == 1:
            given[names[0]] = _array(text)
        else:
            raise InputError(f"{text}: write NAME={text}; the inputs are {', '.join(names)}")
    for name in given:
        if name not in names:
            raise InputError(f"there is no input {name!r}; the inputs are {', '.join(names)}")
    missing = [name for name in names if name not in given]
    if missing:
        raise InputError(f"nothing is given for {', '.join(missing)}; the inputs are {', '.join(names)}")
    return [given[name] for name in names]


def _array(path: str) -> np.ndarray[Any, Any]:
    try:
        loaded: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an array of numpy: {error}") from error
    return loaded


def _archive(path: str) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as arrays of numpy: {error}") from error


def _numbers(sizes: Sequence[str]) -> dict[str, int]:
    found = {}
    for text in sizes:
        name, _, number = text.partition("=")
        if not number.isdecimal():
            raise InputError(f"--size {text}: write NAME=N")
        found[name] = int(number)
    return found


def _random(manifest: Manifest, sizes: Mapping[str, int], seed: int) -> list[np.ndarray[Any, Any]]:
    for name in sizes:
        if name not in manifest.dimensions:
            raise InputError(f"--size {name}: the symbolic dimensions are {', '.join(manifest.dimensions) or 'none'}")
    bound = {name: sizes.get(name, _smallest(item.min, item.multiple_of)) for name, item in manifest.dimensions.items()}
    generator = np.random.default_rng(seed)
    return [_random_tensor(item, bound, generator) for item in manifest.inputs]


def _smallest(low: int, multiple: int) -> int:
    return max(-(-low // multiple), 1) * multiple


def _random_tensor(item: TensorSpec, bound: Mapping[str, int], generator: np.random.Generator) -> Any:
    shape = [dim if isinstance(dim, int) else parse(dim).evaluate(bound) for dim in item.shape]
    kind = DTYPES[item.dtype]
    if kind.name == "bf16":
        raise InputError(f"input {item.name!r} is bfloat16, which numpy has not: call whet.load's module with torch")
    if kind.storage.kind == "f":
        return generator.standard_normal(shape).astype(kind.storage)
    return generator.integers(0, _LARGEST_RANDOM_INTEGER, shape).astype(kind.storage)
