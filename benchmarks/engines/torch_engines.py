"""PyTorch: eager, and torch.compile with its defaults."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from benchmarks.engines.base import Engine, Job, Run


class Eager(Engine):
    """PyTorch as it is."""

    modules = ("torch",)

    def prepare(self, job: Job) -> None:
        """Nothing to do ahead."""

    def load(self, job: Job) -> Run:
        """The model called in inference mode."""
        return _caller(job, job.case.build())


class TorchCompile(Engine):
    """torch.compile with its defaults; what it compiles is cached, so that only `prepare` pays for it."""

    modules = ("torch",)

    def prepare(self, job: Job) -> None:
        """Compile once into the cache."""
        self.load(job)()

    def load(self, job: Job) -> Run:
        """The compiled model called in inference mode."""
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(job.folder / "inductor")
        import torch

        return _caller(job, torch.compile(job.case.build()))


def _caller(job: Job, model: Callable[..., Any]) -> Run:
    import torch

    torch.set_num_threads(job.threads)
    args = tuple(torch.from_numpy(value) for value in job.inputs.args)
    kwargs = {name: torch.from_numpy(value) for name, value in job.inputs.kwargs.items()}

    def run() -> Any:
        with torch.inference_mode():
            return model(*args, **kwargs)

    return run
