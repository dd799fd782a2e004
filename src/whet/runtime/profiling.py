"""How long each kernel of a bundle takes inside of the model's run."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from whet.runtime.bundle import Trusted
from whet.runtime.keys import KeySource
from whet.runtime.loading import load

_WARM_UP: Final = 5
_LEAST_CALLS: Final = 5
_MACHINE: Final = "vm."
"""How the names of the virtual machine's own functions begin."""


@dataclass(frozen=True)
class KernelTimes:
    """Medians over many calls of a model.

    Attributes:
        names: of the kernels, in the order in which they are called.
        seconds: of each of these calls, without what watching costs.
        model_seconds: of a whole call of the model that nobody watches.
        calls: seconds of every such call of the model.
    """

    names: tuple[str, ...]
    seconds: tuple[float, ...]
    model_seconds: float
    calls: tuple[float, ...] = ()


class _Watch:
    """An observer that notes how long each function took."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        self._begun = 0

    def __call__(self, name: str, before: bool) -> None:
        if not before:
            self.calls.append((name, (time.perf_counter_ns() - self._begun) * 1e-9))
        # The last thing that is done ahead of the function.
        self._begun = time.perf_counter_ns()


def time_kernels(
    bundle: str | os.PathLike[str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    threads: int | None = None,
    seconds: float = 3.0,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
    *,
    trusted: Trusted = None,
    key: KeySource | None = None,
) -> KernelTimes:
    """Run a bundle for about `seconds`, half of them watched, and at least ten times.

    Raises what `load` and a call raise, and RuntimeError where two calls of the model do not call the same kernels.
    """
    watch = _Watch()
    plain = load(bundle, threads, trusted=trusted, key=key)
    watched = load(bundle, threads, observer=watch, trusted=trusted, key=key)
    runs: list[list[tuple[str, float]]] = []
    whole: list[float] = []
    begun = time.perf_counter()
    for number in itertools.count():
        if number == _WARM_UP:
            begun = time.perf_counter()
        spent = time.perf_counter() - begun
        if number >= _WARM_UP + _LEAST_CALLS and spent > seconds:
            break
        progress("running the model", round(1000 * min(spent, seconds)), round(1000 * seconds))
        start = time.perf_counter()
        plain(*args, **kwargs)
        whole.append(time.perf_counter() - start)
        watch.calls = []
        watched(*args, **kwargs)
        runs.append(watch.calls)
    return _medians(runs[_WARM_UP:], whole[_WARM_UP:])


def _medians(runs: Sequence[Sequence[tuple[str, float]]], whole: Sequence[float]) -> KernelTimes:
    names = [name for name, _ in runs[0]]
    if any([name for name, _ in run] != names for run in runs):
        raise RuntimeError("the model does not call the same kernels in every run")
    medians = [statistics.median(run[place][1] for run in runs) for place in range(len(names))]
    # The cheapest function of the machine does next to nothing: what it takes is what watching takes.
    cost = min((taken for name, taken in zip(names, medians, strict=True) if name.startswith(_MACHINE)), default=0.0)
    kernels = [(name, max(taken - cost, 0.0)) for name, taken in zip(names, medians, strict=True)]
    kernels = [(name, taken) for name, taken in kernels if not name.startswith(_MACHINE)]
    return KernelTimes(
        tuple(name for name, _ in kernels),
        tuple(taken for _, taken in kernels),
        statistics.median(whole),
        tuple(whole),
    )
