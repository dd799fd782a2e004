"""AArch64 bundles really run: on an emulated core, by the aarch64 runtime, without torch and without the compiler."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import whet
from tests.e2e.networks import Counter, Encoder, ResidualConvs, relative_error, seeded

pytestmark = [pytest.mark.arm, pytest.mark.timeout(600)]

RUN = Path(__file__).parent / "device_run.py"


def run_on(core: str, arm_device: Path, bundle: Path, inputs: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], str]:
    """Outputs of a bundle on the emulated core, and what the process printed; raises with its error output."""
    files = bundle.with_suffix(".in.npz"), bundle.with_suffix(".out.npz")
    np.savez(files[0], **{str(index): tensor.numpy() for index, tensor in enumerate(inputs)})
    source = Path(whet.__file__).parent.parent
    finished = subprocess.run(
        [arm_device / "py64", RUN, bundle, *files],
        env=os.environ | {"QCPU": core, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise RuntimeError(finished.stderr)
    return [torch.from_numpy(array) for array in np.load(files[1]).values()], finished.stdout


def test_transformer_with_symbolic_length(arm_device: Path, tmp_path: Path) -> None:
    model = seeded(Encoder())
    tokens, mask = torch.randint(0, 50, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    sizes = {0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("length", max=64)}

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model

        def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.encoder(tokens, mask)["hidden"]

    wrapped = Hidden().eval()
    whet.optimize(wrapped, "arm", example_inputs=(tokens, mask), dynamic_shapes=(sizes, sizes)).save(
        tmp_path / "m.whet"
    )
    tokens, mask = torch.randint(0, 50, (3, 17)), torch.ones(3, 17, dtype=torch.bool)
    (actual,), _ = run_on("cortex-a72", arm_device, tmp_path / "m.whet", [tokens, mask])
    assert relative_error(actual, wrapped(tokens, mask)) < 1e-4


def test_state(arm_device: Path, tmp_path: Path) -> None:
    whet.optimize(Counter().eval(), "arm", example_inputs=(torch.zeros(4),)).save(tmp_path / "m.whet")
    (mean, calls), _ = run_on("cortex-a72", arm_device, tmp_path / "m.whet", [torch.full((4,), 3.0)])
    assert mean.tolist() == [3.0] * 4 and calls.item() == 1


def test_code_for_another_core_is_refused_before_it_runs(arm_device: Path, tmp_path: Path) -> None:
    x = torch.randn(1, 3, 33, 33)
    whet.optimize(seeded(ResidualConvs()), "cortex-a76", example_inputs=(x,)).save(tmp_path / "m.whet")
    with pytest.raises(RuntimeError, match="dotprod"):
        run_on("cortex-a72", arm_device, tmp_path / "m.whet", [x])
