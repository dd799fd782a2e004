"""How long each kernel of a bundle takes inside of the model's run: `python -m benchmarks.kernel_times FOLDER`."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.engines.base import INPUTS_FILE, Inputs
from benchmarks.engines.whet_engines import BUNDLE

_WARM_UP = 5
_LEAST_CALLS = 5
_MACHINE = "vm."
"""How the names of the virtual machine's own functions begin."""


@dataclass(frozen=True)
class KernelTimes:
    """Medians over many calls of a model.

    Attributes:
        names: of the kernels, in the order in which they are called.
        seconds: of each of these calls, without what watching costs.
        model_seconds: of a whole call of the model that nobody watches.
    """

    names: tuple[str, ...]
    seconds: tuple[float, ...]
    model_seconds: float


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


def time_kernels(bundle: Path, inputs: Inputs, threads: int | None, seconds: float) -> KernelTimes:
    """Run a bundle for about `seconds`, half of them watched.

    Raises RuntimeError where two calls of the model do not call the same kernels.
    """
    import whet

    watch = _Watch()
    plain = whet.load(bundle, threads=threads)
    watched = whet.load(bundle, threads=threads, observer=watch)
    runs: list[list[tuple[str, float]]] = []
    whole: list[float] = []
    end = 0.0
    for number in range(10**9):
        if number == _WARM_UP:
            end = time.perf_counter() + seconds
        if number >= _WARM_UP + _LEAST_CALLS and time.perf_counter() > end:
            break
        start = time.perf_counter()
        plain(*inputs.args, **inputs.kwargs)
        whole.append(time.perf_counter() - start)
        watch.calls = []
        watched(*inputs.args, **inputs.kwargs)
        runs.append(watch.calls)
    return _medians(runs[_WARM_UP:], whole[_WARM_UP:])


def _medians(runs: list[list[tuple[str, float]]], whole: list[float]) -> KernelTimes:
    names = [name for name, _ in runs[0]]
    if any([name for name, _ in run] != names for run in runs):
        raise RuntimeError("the model does not call the same kernels in every run")
    medians = [statistics.median(run[place][1] for run in runs) for place in range(len(names))]
    # The cheapest function of the machine does next to nothing: what it takes is what watching takes.
    cost = min((taken for name, taken in zip(names, medians, strict=True) if name.startswith(_MACHINE)), default=0.0)
    kernels = [(name, max(taken - cost, 0.0)) for name, taken in zip(names, medians, strict=True)]
    kernels = [(name, taken) for name, taken in kernels if not name.startswith(_MACHINE)]
    return KernelTimes(
        tuple(name for name, _ in kernels), tuple(taken for _, taken in kernels), statistics.median(whole)
    )


def main() -> None:
    """Entry point of the process that measures; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    inputs = Inputs.load(options.folder / INPUTS_FILE)
    print(json.dumps(asdict(time_kernels(options.folder / BUNDLE, inputs, options.threads, options.seconds))))


if __name__ == "__main__":
    main()
