"""Every board of the catalogue gets code, in float and in integers, made of nothing that it has not."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import whet
from whet.ir.target import CATALOGUE, get_target
from whet.passes import QuantizeStatic

CODE = {
    (target.triple, target.cpu, target.features): name for name, target in CATALOGUE.items() if target.kind == "cpu"
}
"""One name for each kind of code: a board's is that of its processor."""
X = torch.randn(1, 8, 9, 9, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.Flatten(), nn.Linear(784, 5)
    ).eval()


@pytest.mark.parametrize("name", CODE.values())
def test_a_board_gets_code(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    compiled = whet.optimize(
        network(),
        name,
        example_inputs=(X,),
        passes=[QuantizeStatic(exclude=("4",))],
        calibration=[(X,)],
        tuning=False,
        progress=False,
    )
    assert compiled.target.name == name
    assert {"conv_integer", "linear"} <= {item for kernel in compiled.report().kernels for item in kernel.operations}
    # LLVM says of a processor or feature that it does not know no more than this, and goes on with a generic one
    assert not re.findall(r".*not a recognized.*", capfd.readouterr().err)


def test_the_same_processors_have_the_same_code() -> None:
    for board, processor in (("raspberry-pi-4", "cortex-a72"), ("raspberry-pi-5", "cortex-a76"), ("x86-64-v3", "avx2")):
        assert (get_target(board).cpu, get_target(board).features) == (
            get_target(processor).cpu,
            get_target(processor).features,
        )
