"""Inference engines as the latency benchmark sees them: prepare once, then load and run in a process of its own.

`python -m benchmarks.engines prepare|measure ENGINE MODEL FOLDER ...` prints one JSON object on its last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.models.case import ModelCase

Run = Callable[[], Any]

_MEASURE_SECONDS = 3.0
_WARM_UP = 5


class Engine(ABC):
    """One way to run a model. `precision` says what it really computes in."""

    precision = "f32"

    @abstractmethod
    def prepare(self, case: ModelCase, folder: Path) -> None:
        """Whatever is done once, ahead of running: compile, export, save into `folder`."""

    @abstractmethod
    def load(self, case: ModelCase, folder: Path, threads: int) -> Run:
        """A function without arguments that runs the model once on its example inputs."""


class Eager(Engine):
    """PyTorch as it is."""

    def prepare(self, case: ModelCase, folder: Path) -> None:
        """Nothing to do ahead."""

    def load(self, case: ModelCase, folder: Path, threads: int) -> Run:
        torch.set_num_threads(threads)
        model, inputs, kwargs = case.build(), case.example_inputs(), dict(case.example_kwargs())

        def run() -> Any:
            with torch.inference_mode():
                return model(*inputs, **kwargs)

        return run


class TorchCompile(Eager):
    """torch.compile with its defaults."""

    def load(self, case: ModelCase, folder: Path, threads: int) -> Run:
        torch.set_num_threads(threads)
        model, inputs, kwargs = (
            torch.compile(case.build()),
            case.example_inputs(),
            dict(case.example_kwargs()),
        )

        def run() -> Any:
            with torch.inference_mode():
                return model(*inputs, **kwargs)

        return run


class Whet(Engine):
    """Whet's bundle for this machine; nothing is tuned."""

    passes: tuple[Any, ...] = ()

    def prepare(self, case: ModelCase, folder: Path) -> None:
        import whet

        compiled = whet.optimize(
            case.build(),
            "x86",
            example_inputs=case.example_inputs(),
            example_kwargs=dict(case.example_kwargs()),
            passes=self.passes,
            calibration=[case.example_inputs()],
            progress=False,
        )
        compiled.save(folder / "model.whet")

    def load(self, case: ModelCase, folder: Path, threads: int) -> Run:
        import whet

        module = whet.load(folder / "model.whet", threads=threads)
        inputs = [tensor.numpy() for tensor in case.example_inputs()]
        kwargs = {name: tensor.numpy() for name, tensor in case.example_kwargs().items()}
        return lambda: module(*inputs, **kwargs)


class WhetInt8(Whet):
    """Whet with static int8 quantization, calibrated on the example input alone (speed, not accuracy, is compared)."""

    precision = "int8"

    def prepare(self, case: ModelCase, folder: Path) -> None:
        from whet.passes import QuantizeStatic

        self.passes = (QuantizeStatic(),)
        super().prepare(case, folder)


ENGINES: Mapping[str, type[Engine]] = {
    "eager": Eager,
    "torch.compile": TorchCompile,
    "whet": Whet,
    "whet-int8": WhetInt8,
}


def first_output(outputs: Any) -> np.ndarray:
    """The first tensor of any structure of outputs, as float32."""
    leaf = outputs
    while not hasattr(leaf, "__array__"):
        leaf = next(iter(leaf.values())) if isinstance(leaf, Mapping) else next(iter(leaf))
    return np.asarray(leaf.detach() if isinstance(leaf, torch.Tensor) else leaf).astype(np.float32)


def peak_megabytes() -> float:
    """Peak resident memory of this process; `getrusage` would give the parent's maximum where that is larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak) / 1024


def measure(engine: Engine, case: ModelCase, folder: Path, threads: int) -> dict[str, Any]:
    """Median latency (ms) of about three seconds of calls, peak memory (MB), load time (s)."""
    start = time.perf_counter()
    run = engine.load(case, folder, threads)
    output = first_output(run())
    loaded = time.perf_counter() - start
    for _ in range(_WARM_UP):
        run()
    times: list[float] = []
    while sum(times) < _MEASURE_SECONDS and len(times) < 1000:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    np.save(folder / "output.npy", output)
    return {
        "milliseconds": statistics.median(times) * 1e3,
        "runs": len(times),
        "load_seconds": loaded,
        "peak_megabytes": peak_megabytes(),
    }


def main() -> None:
    """Entry point of one engine's process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("prepare", "measure"))
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    from benchmarks.models.zoo_cases import all_cases

    engine, case = ENGINES[options.engine](), all_cases()[options.model]
    if options.action == "prepare":
        start = time.perf_counter()
        engine.prepare(case, options.folder)
        result: dict[str, Any] = {"prepare_seconds": time.perf_counter() - start}
    else:
        result = measure(engine, case, options.folder, options.threads)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
