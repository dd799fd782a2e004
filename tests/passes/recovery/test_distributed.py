"""Two processes under `torchrun` train as one does on the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.passes.recovery import parallel_run
from whet.errors import PassError
from whet.passes.data import TrainingBatch
from whet.passes.recovery.distributed import Processes, processes


def torchrun(folder: Path, count: int, repository: Path) -> subprocess.CompletedProcess[str]:
    """`parallel_run` in so many processes, as a user starts a script."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    script = [str(Path(parallel_run.__file__)), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        command + script, cwd=repository, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def test_two_processes_give_what_one_gives(tmp_path: Path, repository: Path) -> None:
    """Batch norms, unequal shares, features, a quality to watch, and checkpoints: weights to 1e-5."""
    run = torchrun(tmp_path, 2, repository)
    assert run.returncode == 0, run.stderr
    alone = parallel_run.train(tmp_path / "alone")
    notes = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert notes[0]["told"] > 0 and notes[1]["told"] == 0
    assert notes[0]["evaluated"] > 0 and notes[1]["evaluated"] == 0
    for name, expected in alone.items():
        first, second = (load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in range(2))
        assert first.keys() == second.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(first[key], second[key]), key
            error = float((first[key] - tensor).norm() / tensor.norm().clamp_min(1e-6))
            assert error < 1e-5, (name, key, error)


@pytest.mark.parametrize("rows", [5, 6, 7])
def test_shares_are_all_rows_once(rows: int) -> None:
    batch = TrainingBatch(
        (torch.arange(rows), torch.ones(rows, 2)), {"a": torch.arange(rows), "b": [torch.zeros(rows), "text"]}
    )
    shares = [Processes(rank, 3).share(batch) for rank in range(3)]
    assert torch.equal(torch.cat([share.inputs[0] for share, _ in shares]), torch.arange(rows))
    assert torch.equal(torch.cat([share.labels["a"] for share, _ in shares]), torch.arange(rows))
    assert sum(part for _, part in shares) == pytest.approx(1.0)
    assert all(part == len(share.inputs[0]) / rows and share.labels["b"][1] == "text" for share, part in shares)


def test_batches_that_cannot_be_shared() -> None:
    with pytest.raises(PassError, match=r"3 processes cannot share a train batch of 2 row\(s\)"):
        Processes(0, 3).share(TrainingBatch((torch.zeros(2, 4),)))
    with pytest.raises(PassError, match=r"have \[2, 3\] rows"):
        Processes(0, 2).share(TrainingBatch((torch.zeros(2, 4), torch.zeros(3))))
    with pytest.raises(PassError, match=r"labels of shape \[3\]"):
        Processes(0, 2).share(TrainingBatch((torch.zeros(2, 4),), torch.zeros(3)))


def test_one_process_shares_nothing() -> None:
    batch = TrainingBatch((torch.zeros(1, 4),))
    group = processes()
    assert group == Processes(0, 1) and group.first
    assert group.share(batch) == (batch, 1.0)
    assert group.agree(0.5) == 0.5 and group.broadcast(None, {}) == (None, {})
