"""Benchmarks' child processes: pinned to the same cores, with as many threads as cores, one JSON object as answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

LIMIT_SECONDS = 3600


def cores_for(threads: int) -> list[int]:
    """The first `threads` cores that this process may use. Raises ValueError where there are fewer."""
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(cores):
        raise ValueError(f"{threads} threads were asked for; this process may use {len(cores)} core(s)")
    return cores[:threads]


def run_child(module: str, arguments: Sequence[str], cores: Sequence[int], limit: float = LIMIT_SECONDS) -> Any:
    """Run `python -m module arguments` on `cores` and read the JSON on the last line that it prints.

    Raises RuntimeError with the reason where it fails, also where it takes longer than `limit` seconds.
    """
    threads = str(len(cores))
    variables = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TVM_NUM_THREADS": threads,
        "TVM_BIND_THREADS": "0",
    }
    command = [sys.executable, "-m", module, *arguments]
    try:
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=variables,
            timeout=limit,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"took longer than {limit:.0f} s") from error
    if finished.returncode < 0:
        raise RuntimeError(f"ended by signal {-finished.returncode}")
    if finished.returncode:
        raise RuntimeError(_reason(finished.stderr))
    return json.loads(finished.stdout.strip().splitlines()[-1])


def _reason(stderr: str) -> str:
    """The line that names the exception of a traceback's end; messages may go on below it."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    starts = [index for index, line in enumerate(lines) if line.startswith("Traceback ")]
    after = lines[starts[-1] + 1 :] if starts else lines
    named = (line for line in after if not line.startswith((" ", "\t")))
    return next(named, lines[-1] if lines else "no message")
