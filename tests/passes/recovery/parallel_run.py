"""What test_distributed runs under `torchrun`: a script that knows nothing of processes but where to write."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.passes.recovery.tasks import SmallNet, accuracy_on, constants, imported, pictures
from whet.passes import Context, Distill, FineTune, PassManager
from whet.passes.base import Pass

TOLD, EVALUATED = "told", "evaluated"


def train(folder: Path, seen: dict[str, int] | None = None) -> dict[str, dict[str, Tensor]]:
    """Trained constants by pass: fine-tuning, again from its checkpoint, and distillation with features."""
    seen = {TOLD: 0, EVALUATED: 0} if seen is None else seen
    torch.manual_seed(0)
    teacher, student = (imported(SmallNet(width), pictures()[0][0]) for width in (8, 4))
    batches = [*pictures(3, rows=12), *pictures(1, rows=7, seed=5)]
    accuracy = accuracy_on(pictures(1, seed=9))

    def count(what: str) -> None:
        seen[what] += 1

    def evaluate(model: Callable[..., Any]) -> float:
        count(EVALUATED)
        return accuracy(model)

    def noisy(x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)

    context = Context(train=batches, evaluate=evaluate, progress=lambda *step: count(TOLD))
    fine = FineTune(epochs=3, learning_rate=0.05, patience=3, augment=noisy, checkpoint=folder / "checkpoint")
    passes: dict[str, Pass] = {
        "fine": fine,
        "again": fine,
        "distilled": Distill(teacher=teacher, features={"conv1": 0.5}, epochs=2, learning_rate=0.05),
    }
    return {name: constants(PassManager([item]).run(student, context).graph) for name, item in passes.items()}


def main(folder: Path) -> None:
    """Write what this process has made."""
    torch.set_num_threads(1)
    seen = {TOLD: 0, EVALUATED: 0}
    rank = os.environ["RANK"]
    for name, tensors in train(folder, seen).items():
        save_file(tensors, folder / f"{name}-{rank}.safetensors")
    (folder / f"rank-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
