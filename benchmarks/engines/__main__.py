"""One engine's process: `python -m benchmarks.engines prepare|measure ENGINE MODEL FOLDER`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.engines.base import Job
from benchmarks.engines.catalogue import ENGINES
from benchmarks.engines.measuring import SECONDS, measure, prepare

if TYPE_CHECKING:
    from benchmarks.models.case import ModelCase


def find_case(name: str) -> ModelCase:
    """A case by its name. Raises KeyError for an unknown one."""
    from benchmarks.models.zoo_cases import all_cases

    return all_cases()[name]


def main() -> None:
    """Prepare or measure, and print the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("action", choices=("prepare", "measure"))
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long calls are measured")
    options = parser.parse_args()
    job = Job(lambda: find_case(options.model), options.folder, options.threads)
    engine = ENGINES[options.engine]()
    result = prepare(engine, job) if options.action == "prepare" else measure(engine, job, options.seconds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
