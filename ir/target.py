"""Devices by name: those of `whet.ir.boards`, this machine, CUDA's capabilities, and those of other packages.

A target of one's own is one dataclass, given to `whet.optimize` in place of a name:

    Target("my-board", triple="aarch64-unknown-linux-gnu", cpu="cortex-a55", features=("neon", "dotprod"))

A package may publish targets through the entry point group "whet.targets", each a Target or a function that
gives one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Final

from whet.errors import TargetError
from whet.ir.boards import BOARDS, CUDA
from whet.ir.device import Target

__all__ = ["CATALOGUE", "HOST", "Target", "get_target", "target_names"]

ENTRY_POINTS: Final = "whet.targets"
_CUDA: Final = re.compile(r"cuda:(sm_([0-9]{2,3})[af]?)")
_OLDEST_CUDA: Final = 70

CATALOGUE: Final[Mapping[str, Target]] = MappingProxyType({target.name: target for target in BOARDS})
HOST: Final = "x86"
"""The name of the machine that asks; it is detected when asked for."""


def get_target(target: str | Target) -> Target:
    """The target of that name; a Target is returned as it is.

    Names are those of `CATALOGUE`, "x86" (this machine), "cuda:sm_NN", and what other packages publish.
    Raises TargetError, with the known names and the nearest of them, for any other.
    """
    if isinstance(target, Target):
        return target
    if not isinstance(target, str):
        raise TargetError(f"a target is a name or a whet.Target, not {type(target).__name__}")
    if target == HOST:
        from whet.ir.host import host_target

        return host_target(HOST)
    if target in CATALOGUE:
        return CATALOGUE[target]
    cuda = _CUDA.fullmatch(target)
    if cuda is not None:
        return _cuda_target(target, arch=cuda.group(1), capability=int(cuda.group(2)))
    published = _published()
    if target in published:
        return _load(target, published[target])
    raise TargetError(_unknown(target, target_names()))


def target_names() -> tuple[str, ...]:
    """Every name that `get_target` takes; "cuda:sm_NN" stands for all compute capabilities."""
    return (HOST, *CATALOGUE, "cuda:sm_NN", *sorted(_published()))


def _cuda_target(name: str, arch: str, capability: int) -> Target:
    if capability < _OLDEST_CUDA:
        raise TargetError(f"{name}: compute capabilities from sm_{_OLDEST_CUDA} are supported")
    return replace(CUDA, name=name, device_arch=arch)


def _published() -> dict[str, EntryPoint]:
    """Targets of other packages by name. Raises TargetError for a name that is taken twice."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == HOST or point.name in CATALOGUE or point.name in found:
            raise TargetError(f"target {point.name!r} is published by {point.value!r}, but that name is taken already")
        found[point.name] = point
    return found


def _load(name: str, point: EntryPoint) -> Target:
    loaded = point.load()
    target = loaded() if callable(loaded) else loaded
    if not isinstance(target, Target):
        raise TargetError(f"entry point {name!r} ({point.value}) gives a {type(target).__name__}, not a whet Target")
    return target


def _unknown(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(item) for item in near)}?" if near else ""
    return (
        f"unknown target {name!r}.{hint} Known are {', '.join(known)}; "
        "for another device make a whet Target with its triple, cpu and features"
    )
