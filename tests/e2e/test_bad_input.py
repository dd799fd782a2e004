"""Everything that a user can get wrong has an error that names the thing and the way out."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import whet
from tests.e2e.networks import Encoder, ResidualConvs, seeded
from whet.errors import BundleError, CaptureError, InputError, PassError, TargetError, UnsupportedOpError
from whet.passes import QuantizeStatic
from whet.runtime import write_bundle

X = torch.zeros(1, 3, 33, 33)


@pytest.fixture(scope="module")
def compiled() -> Any:
    """A small compiled model."""
    return whet.optimize(nn.Linear(4, 2).eval(), "x86", example_inputs=(torch.zeros(3, 4),))


class Fourier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).abs() + torch.linalg.matrix_exp(x)


def test_every_unsupported_operator_is_listed_with_its_line() -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        whet.optimize(Fourier().eval(), "x86", example_inputs=(torch.zeros(4, 4),))
    assert len(caught.value.operators) >= 2
    assert "test_bad_input.py" in str(caught.value) and "write-a-converter" in str(caught.value)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_data_dependent_control_flow() -> None:
    with pytest.raises(CaptureError, match=r"torch\.where"):
        whet.optimize(Branch().eval(), "x86", example_inputs=(torch.zeros(4),))


def test_training_mode() -> None:
    with pytest.raises(CaptureError, match=r"model\.eval\(\)"):
        whet.optimize(ResidualConvs().train(), "x86", example_inputs=(X,))


def test_broken_weights() -> None:
    model = seeded(ResidualConvs())
    with torch.no_grad():
        model.get_parameter("pointwise.weight")[0, 0] = float("nan")
    with pytest.raises(CaptureError, match=r"pointwise\.weight.*NaN"):
        whet.optimize(model, "x86", example_inputs=(X,))


def test_no_example_inputs() -> None:
    with pytest.raises(CaptureError, match=r"example_inputs="):
        whet.optimize(seeded(ResidualConvs()), "x86")


@pytest.mark.parametrize("inputs", [(), (X, X), (torch.zeros(1, 4, 33, 33),), (torch.zeros(1, 3, 33, 33).long(),)])
def test_wrong_example_inputs(inputs: tuple[Tensor, ...]) -> None:
    with pytest.raises(CaptureError, match="example_inputs"):
        whet.optimize(seeded(ResidualConvs()), "x86", example_inputs=inputs)


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ((), "input"),
        ((torch.zeros(3, 4), torch.zeros(3, 4)), "2"),
        ((torch.zeros(2, 4),), "3, 4"),
        ((torch.zeros(3, 4, 1),), "3, 4"),
        ((torch.zeros(3, 4, dtype=torch.float64),), "float32"),
        (("text",), "input"),
    ],
)
def test_wrong_inputs_at_run_time(compiled: Any, inputs: tuple[Any, ...], named: str) -> None:
    with pytest.raises(InputError, match=named):
        compiled(*inputs)


def test_unknown_target_names_the_nearest() -> None:
    with pytest.raises(TargetError, match="cortex-a76"):
        whet.optimize(nn.ReLU().eval(), "cortex-a67", example_inputs=(X,))


def test_unknown_backend() -> None:
    with pytest.raises(TargetError, match="tvm"):
        whet.optimize(nn.ReLU().eval(), "x86", example_inputs=(X,), backend="tmv")


def test_something_that_is_no_model() -> None:
    with pytest.raises(CaptureError, match=r"nn\.Module"):
        whet.optimize(42, "x86", example_inputs=(X,))


@pytest.mark.parametrize("path", ["missing.pt2", "broken.pt2"])
def test_program_files(path: str, tmp_path: Path) -> None:
    (tmp_path / "broken.pt2").write_bytes(b"not a program")
    with pytest.raises(CaptureError, match=path):
        whet.optimize(tmp_path / path, "x86")


@pytest.mark.parametrize("place", ["no/such/folder/m.whet", "file/m.whet", ""])
def test_unwritable_path(compiled: Any, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError):
        compiled.save(tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_no_half_file(compiled: Any, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the end of the disk: the kernel refuses the write in both cases."""
    (tmp_path / "m.whet").write_bytes(b"the bundle of yesterday")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    library = tmp_path / "lib.so"
    library.write_bytes(bytes(100_000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(BundleError, match=r"m\.whet"):
            write_bundle(tmp_path / "m.whet", compiled.manifest, library, compiled.weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["lib.so", "m.whet"]
    assert (tmp_path / "m.whet").read_bytes() == b"the bundle of yesterday"


def test_tampered_bundle(compiled: Any, tmp_path: Path) -> None:
    compiled.save(tmp_path / "m.whet")
    content = bytearray((tmp_path / "m.whet").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "m.whet").write_bytes(content)
    with pytest.raises(BundleError, match=r"m\.whet"):
        whet.load(tmp_path / "m.whet")


def test_quantization_without_calibration() -> None:
    with pytest.raises(PassError, match="calibration="):
        whet.optimize(seeded(ResidualConvs()), "x86", example_inputs=(X,), passes=[QuantizeStatic()])


def test_a_pass_that_can_change_nothing_says_so() -> None:
    with pytest.raises(PassError, match="QuantizeStatic"):
        whet.optimize(nn.ReLU().eval(), "x86", example_inputs=(X,), passes=[QuantizeStatic()], calibration=[(X,)])


def test_calibration_of_another_structure_is_named() -> None:
    tokens, mask = torch.zeros(2, 9, dtype=torch.int64), torch.ones(2, 9, dtype=torch.bool)
    with pytest.raises(InputError):
        whet.optimize(
            seeded(Encoder()),
            "x86",
            example_inputs=(tokens, mask),
            passes=[QuantizeStatic()],
            calibration=[(tokens,)],
        )
