"""Boards for the tests: servers of this machine, or of the emulated device, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import whet
from whet import Device

KEY = "a key for the tests"
SOURCE = Path(whet.__file__).parent.parent


@dataclass
class Board:
    """A server that runs."""

    url: str
    process: subprocess.Popen[str]

    def device(self, limit: float = 60.0) -> Device:
        return Device(self.url, KEY, limit=limit)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the server and all that it has started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)


@contextmanager
def board(
    command: str = "serve",
    *options: str,
    python: Sequence[str | Path] = (sys.executable,),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Board]:
    """`whet serve` (or another command that listens), as soon as it does."""
    variables = {"WHET_KEY": KEY, "PYTHONPATH": str(SOURCE), "TVM_NUM_THREADS": "1", **(environment or {})}
    code = f"from whet.cli import main; main({[command, '--port', '0', *options]!r})"
    process = subprocess.Popen(
        [*python, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
        start_new_session=True,
    )
    assert process.stdout is not None
    made = Board("", process)
    try:
        for line in process.stdout:
            if " on rpc://" in line:
                made.url = line.split()[-1]
                break
        assert made.url, f"{command} does not serve"
        yield made
    finally:
        made.stop()
        process.wait()
        process.stdout.close()
