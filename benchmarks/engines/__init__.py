"""Inference engines as the benchmarks see them: prepared once, then loaded and run in a process of their own.

`python -m benchmarks.engines prepare|measure ENGINE MODEL FOLDER` prints one JSON object on its last line.
"""

from benchmarks.engines.base import Engine, Inputs, Job, Run
from benchmarks.engines.catalogue import ENGINES

__all__ = ["ENGINES", "Engine", "Inputs", "Job", "Run"]
