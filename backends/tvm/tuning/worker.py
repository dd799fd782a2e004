"""A process that measures candidates, each in a child of its own: `python -m whet.backends.tvm.tuning.worker`.

TVM is imported once. A child that crashes, hangs or leaks costs one candidate; after a fork nothing has to be imported
again. Reads the path of a job a line (a folder, see `jobs`), answers with one line of JSON.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

from whet.backends.tvm.tuning.execute import execute

_MOST_BYTES: Final = 1 << 20
"""Of an answer."""


def serve(lines: Any, answers: Any) -> None:
    """Answer jobs until the input ends."""
    for line in lines:
        answers.write(json.dumps(_isolated(Path(line.strip()))) + "\n")
        answers.flush()


def _isolated(job: Path) -> dict[str, Any]:
    """The result of a job, from a child that is killed where it takes too long."""
    limit = json.loads((job / "job.json").read_text())["limit"]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        _child(job, writing)
    os.close(writing)
    try:
        text = _read(reading, time.monotonic() + limit)
    finally:
        os.close(reading)
    if text is None:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if text is None:
        return {"failure": f"took longer than {limit:g} s"}
    if not text:
        return {"failure": f"died of signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "died"}
    answer: dict[str, Any] = json.loads(text)
    return answer


def _child(job: Path, writing: int) -> None:
    """Never returns: nothing of the parent's may run twice."""
    try:
        answer = execute(job)
    except BaseException as error:
        lines = str(error).strip().splitlines() or [""]
        answer = {"failure": f"{type(error).__name__}: {lines[-1][:200]}"}
    os.write(writing, json.dumps(answer).encode()[:_MOST_BYTES])
    os._exit(0)


def _read(descriptor: int, until: float) -> str | None:
    """All that the child writes; None where it has not ended by then."""
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        part = os.read(descriptor, 65536)
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


if __name__ == "__main__":
    # what TVM or LLVM print must not mix with the answers
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, protocol)
