"""What an engine is, and the work that it is given. Nothing here imports PyTorch: a process pays for what it uses."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from benchmarks.models.case import ModelCase

Array = npt.NDArray[Any]
Run = Callable[[], Any]

INPUTS_FILE = "inputs.npz"
_POSITION, _KEYWORD = "arg:", "kwarg:"


@dataclass(frozen=True)
class Inputs:
    """One call's tensors, by position and by keyword."""

    args: tuple[Array, ...]
    kwargs: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, case: ModelCase) -> Inputs:
        """A case's example inputs. Raises TypeError for one that is no tensor: files hold only those."""
        args, kwargs = case.example_inputs(), case.example_kwargs()
        for value in (*args, *kwargs.values()):
            if not hasattr(value, "__array__"):
                raise TypeError(f"{case.name} takes a {type(value).__name__}; engines are only given tensors")
        return cls(
            tuple(np.asarray(value) for value in args), {name: np.asarray(value) for name, value in kwargs.items()}
        )

    def by_name(self, names: list[str]) -> dict[str, Array]:
        """The tensors under the names of an exported model, whose positional inputs come first."""
        return dict(zip(names, self.args, strict=False)) | dict(self.kwargs)

    def save(self, path: Path) -> None:
        """Write them to an .npz file."""
        named = {f"{_POSITION}{index}": value for index, value in enumerate(self.args)}
        named |= {f"{_KEYWORD}{name}": value for name, value in self.kwargs.items()}
        np.savez(path, **named)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Inputs:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            tensors = {name: stored[name] for name in stored.files}
        count = sum(name.startswith(_POSITION) for name in tensors)
        return cls(
            tuple(tensors[f"{_POSITION}{index}"] for index in range(count)),
            {name.removeprefix(_KEYWORD): value for name, value in tensors.items() if name.startswith(_KEYWORD)},
        )


@dataclass(frozen=True)
class Job:
    """One model for one engine.

    Attributes:
        find: gives the model's case. Only what needs PyTorch asks for it, so that the memory of the others is theirs.
        folder: where the engine keeps what it prepares; the inputs lie there already.
        threads: how many the engine may use.
    """

    find: Callable[[], ModelCase]
    folder: Path
    threads: int = 1

    @cached_property
    def case(self) -> ModelCase:
        """The model's case; imports PyTorch."""
        return self.find()

    @cached_property
    def inputs(self) -> Inputs:
        """The inputs of every call."""
        return Inputs.load(self.folder / INPUTS_FILE)

    def artifacts(self) -> list[Path]:
        """Files that the engine prepared: what is shipped."""
        return [item for item in self.folder.iterdir() if item.is_file() and item.name != INPUTS_FILE]


class Engine(ABC):
    """One way to run a model.

    Attributes:
        precision: what its contractions are computed in; engines of one precision are compared.
        modules: what must be importable.
        own: whether it is this project's; all others are peers.
        note: what else one should know, such as the precision of the rest.
    """

    precision: ClassVar[str] = "f32"
    modules: ClassVar[tuple[str, ...]] = ()
    own: ClassVar[bool] = False
    note: ClassVar[str] = ""

    @abstractmethod
    def prepare(self, job: Job) -> None:
        """Whatever is done once, ahead of running: compile, export, quantize; saved into the job's folder."""

    @abstractmethod
    def load(self, job: Job) -> Run:
        """A function without arguments that runs the model once on the job's inputs."""

    @classmethod
    def missing(cls) -> tuple[str, ...]:
        """Of the modules that it needs, those that are not installed."""
        return tuple(name for name in cls.modules if importlib.util.find_spec(name) is None)
