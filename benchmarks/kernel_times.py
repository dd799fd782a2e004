"""The kernels of a bundle, timed in a process of its own: `python -m benchmarks.kernel_times FOLDER`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.engines.base import INPUTS_FILE, Inputs
from benchmarks.engines.whet_engines import BUNDLE
from whet.runtime.profiling import time_kernels


def main() -> None:
    """Entry point of the process that measures; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    inputs = Inputs.load(options.folder / INPUTS_FILE)
    times = time_kernels(options.folder / BUNDLE, inputs.args, inputs.kwargs, options.threads, options.seconds)
    print(json.dumps(asdict(times)))


if __name__ == "__main__":
    main()
