"""What a device pays to run MobileNetV2: download, installed size, start-up time, peak memory; beside the peers.

Every runtime gets a fresh environment with what pip installs for it. Starts are processes of their own, in turn, on the
same cores; the medians count. The first start of each does not: it compiles Python's own code.

    python -m benchmarks.footprint --rounds 9 --json benchmarks/results/footprint.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import environment, wide_console
from benchmarks.footprint.preparing import MODEL, Candidate, prepare_peer, prepare_whet
from benchmarks.footprint.rows import MEASURED, table
from benchmarks.footprint.runtimes import peers
from benchmarks.processes import cores_for

_LIMIT_SECONDS = 300.0
# Of the first eight scores, which lie between -3 and 3.
_TOLERANCE = 1e-2


def start(command: Sequence[str], cores: Sequence[int]) -> dict[str, Any]:
    """One start. Raises RuntimeError with the last line of what it complained of."""
    # Isolated from this process: neither its paths nor its numbers of threads.
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [*command, str(time.monotonic_ns())],
        capture_output=True,
        text=True,
        env=clean,
        timeout=_LIMIT_SECONDS,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def measure(candidates: Sequence[Candidate], rounds: int, cores: Sequence[int]) -> None:
    """Start all of them in turn; a failure is the row's result, and so are other scores than the first's."""
    expected: list[float] = []
    for number in range(rounds + 1):
        for candidate in candidates:
            row = candidate.row
            if row.failure:
                continue
            try:
                result = start(candidate.command, cores)
            except RuntimeError as error:
                row.failure = str(error)
                continue
            if row.model_megabytes is not None:
                expected = expected or result["output"]
                if not np.allclose(result["output"], expected, atol=_TOLERANCE):
                    row.failure = f"scores {result['output']} in place of {expected}"
            if number:
                row.add({name: result[name] for name in MEASURED})


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 where a runtime failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="starts of each that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds: give 1 or more")
    cores, console = cores_for(options.threads), wide_console()
    with tempfile.TemporaryDirectory(prefix="whet-footprint-") as top, console.status("") as status:
        status.update("preparing whet")
        candidates = prepare_whet(Path(top) / "whet", cores)
        for runtime in peers():
            status.update(f"preparing {runtime.name}")
            candidates.append(prepare_peer(runtime, Path(top) / runtime.start, cores))
        status.update("measuring")
        measure(candidates, options.rounds, cores)
    rows = [candidate.row for candidate in candidates]
    about = environment() | {"model": MODEL, "precision": "f32", "threads": str(options.threads)}
    console.print(table(rows, f"{MODEL}, f32, {options.threads} thread(s), {about['cpu']}, {about['date']}"))
    for row in rows:
        for text in filter(None, (row.note, row.failure)):
            console.print(f"{row.runtime}: {text}", markup=False)
    if options.json:
        result = {"environment": about, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(row.failure for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
