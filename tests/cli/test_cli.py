"""The command: every subcommand on a small bundle, its exit statuses, its JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import whet
from whet.cli import main

MODEL = """
import torch

def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4))
    return model.eval(), torch.randn(1, 3, 8, 8)

def broken():
    return 1, 2, 3

def everything():
    model, x = make()
    return {"model": model, "example_inputs": (x,), "calibration": [(x,)]}

batches = [(torch.zeros(1, 3, 8, 8),), (torch.ones(1, 3, 8, 8),)]
"""
RECIPE = """
calibration = "model_of_test.py:batches"

[[passes]]
type = "QuantizeStatic"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model_of_test.py").write_text(MODEL)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "residual.whet"
    whet.optimize(Residual().eval(), "x86", example_inputs=(torch.randn(1, 3, 8, 8),)).save(path)
    return path


class Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.second = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.first(x)
        return {"sum": self.second(torch.softmax(y, 1)) + y, "mean": y.mean()}


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command prints as JSON."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_optimize_applies_the_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = output_of(capsys, "optimize", "model_of_test.py:make", "-p", "recipe.toml", "-o", "m.whet")
    assert done["bundle_bytes"] == (folder / "m.whet").stat().st_size
    assert done["passes"][0]["name"] == "QuantizeStatic"
    shown = output_of(capsys, "inspect", "m.whet")
    assert any(kernel["precision"].startswith("u8 x i8") for kernel in shown["manifest"]["kernels"])
    assert shown["runs_here"]


def test_a_model_may_bring_its_data_along(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "static.toml").write_text('[[passes]]\ntype = "QuantizeStatic"\n')
    assert main(["optimize", "model_of_test.py:everything", "-p", "static.toml", "-o", "m.whet"]) == 0
    assert "QuantizeStatic" in capsys.readouterr().out


def test_optimize_takes_an_exported_program(folder: Path) -> None:
    program = torch.export.export(torch.nn.Linear(3, 2).eval(), (torch.ones(1, 3),))
    torch.export.save(program, "linear.pt2")
    assert main(["optimize", "linear.pt2", "-o", "linear.whet"]) == 0
    assert whet.load("linear.whet")(np.ones((1, 3), np.float32)).shape == (1, 2)


def test_run_gives_what_the_module_gives(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.save("x.npy", x)
    done = output_of(capsys, "run", str(bundle), "x.npy", "-o", "out.npz")
    assert [item["shape"] for item in done["outputs"]] == [[1, 3, 8, 8], []]
    expected = whet.load(bundle)(x)
    with np.load("out.npz") as written:
        np.testing.assert_array_equal(written[done["outputs"][0]["name"]], expected["sum"])
    assert main(["run", str(bundle), "x=x.npy"]) == 0
    np.savez("x.npz", x=x)
    assert main(["run", str(bundle), "x.npz"]) == 0


def test_bench_accounts_for_the_time(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = output_of(capsys, "bench", str(bundle), "--seconds", "0.1")
    assert sum(row["share"] for row in done["kernels"]) == pytest.approx(1)
    assert {"conv"} <= {name for row in done["kernels"] for name in row["operations"]}
    assert done["milliseconds"]["min"] <= done["milliseconds"]["median"] <= done["milliseconds"]["max"]
    assert done["peak_memory_bytes"] > 10e6
    assert main(["bench", str(bundle), "--seconds", "0.1", "--top", "1"]) == 0
    assert "more:" in capsys.readouterr().out


def test_inspect_draws_every_kernel(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "graph.svg"
    assert main(["inspect", str(bundle), "--graph", str(picture), "--weights"]) == 0
    assert "first.weight" in capsys.readouterr().out.replace("\n", "")
    kernels = whet.load(bundle).manifest.kernels
    boxes = ElementTree.parse(picture).getroot().findall("{http://www.w3.org/2000/svg}g")
    assert len(boxes) == len(kernels) + 2
    # the sum reads the first convolution past the softmax
    assert any(min(call.reads, default=index) < index - 1 for index, call in enumerate(kernels))


def test_catalogues(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"cortex-a76", "avx2"} <= {item["name"] for item in output_of(capsys, "targets")}
    found = {item["name"]: item for item in output_of(capsys, "passes")}
    assert set(whet.passes.available()) == set(found)
    assert "ratio" in {option["name"] for option in found["StructuredPruning"]["options"]}
    assert main(["passes", "QuantizeWeights"]) == 0
    assert "group_size" in capsys.readouterr().out
    assert output_of(capsys, "devices")[0]["runtime"].endswith(".so")
    for command in ("targets", "passes", "devices"):
        assert main([command]) == 0


def test_tune_writes_records_and_reports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("tune", "model_of_test.py:make", "--trials", "2", "--database", "records", "-o", "tuned.whet")
    done = output_of(capsys, *arguments)
    assert done["tuning"]["tasks"]
    assert any((folder / "records").rglob("*"))
    assert whet.load("tuned.whet")(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 4)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("run", "nothing.whet"), 1, "there is no such file"),
        (("optimize", "nothing.pt2", "-o", "x"), 1, "there is no file nothing.pt2"),
        (("optimize", "model_of_test.py:nothing", "-o", "x"), 1, "has no attribute 'nothing'"),
        (("optimize", "model_of_test.py:broken", "-o", "x"), 1, "tuple of 3"),
        (("optimize", "no_module_here:make", "-o", "x"), 1, "no module 'no_module_here'"),
        (("optimize", "model_of_test.py:make", "-t", "cortex-a67", "-o", "x"), 1, "Did you mean 'cortex-a76'"),
        (("optimize", "model_of_test.py:make", "-p", "nothing.toml", "-o", "x"), 1, "nothing.toml"),
        (("optimize", "model_of_test.py:make"), 2, "--out"),
        (("nothing",), 2, "No such command"),
        (("passes", "Nothing"), 1, "there is no pass 'Nothing'"),
        (("tune", "model_of_test.py:make", "--trials", "0"), 1, "trials must be positive"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], status: int, message: str
) -> None:
    assert main(arguments) == status
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing.npy",), "cannot be read"),
        (("y=x.npy",), "no input 'y'"),
        (("--size", "n=3"), "symbolic dimensions are none"),
        (("--size", "n"), "write NAME=N"),
        (("x.npy", "--size", "n=3"), "--size is for random inputs"),
    ],
)
def test_wrong_inputs_are_named(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((1, 3, 8, 8), np.float32))
    assert main(["run", str(bundle), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_symbolic_dimensions_are_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = torch.export.Dim("batch", max=9)
    compiled = whet.optimize(
        torch.nn.Linear(3, 2).eval(), "x86", example_inputs=(torch.ones(4, 3),), dynamic_shapes=({0: batch},)
    )
    compiled.save(tmp_path / "m.whet")
    shapes = [
        output_of(capsys, "run", str(tmp_path / "m.whet"), *more)["outputs"][0]["shape"]
        for more in ((), ("--size", "batch=5"))
    ]
    assert shapes == [[1, 2], [5, 2]]
    shown = output_of(capsys, "inspect", str(tmp_path / "m.whet"))["manifest"]
    assert shown["dimensions"] == {"batch": {"min": 1, "max": 9, "multiple_of": 1}}
    assert shown["inputs"][0]["shape"] == ["batch", 3]
    assert main(["run", str(tmp_path / "m.whet"), "--size", "s0=5"]) == 1
    assert "the symbolic dimensions are batch" in capsys.readouterr().err


def test_debug_shows_the_stack(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nothing.whet", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interruption_is_its_own_status(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        error = KeyboardInterrupt()
        error.add_note("3 epochs are kept")
        raise error

    monkeypatch.setattr(whet, "optimize", interrupted)
    assert main(["optimize", "model_of_test.py:make", "-o", "x"]) == 130
    assert "3 epochs are kept" in capsys.readouterr().err


def test_the_commands_of_a_device_import_no_torch(bundle: Path) -> None:
    code = (
        "import sys; from whet.cli import main; "
        f"assert main(['run', {str(bundle)!r}]) == 0; assert main(['inspect', {str(bundle)!r}]) == 0; "
        "assert not {'torch', 'tvm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_completion_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == whet.__version__
    # without a look at which shell has started this process: there may be none
    named = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "whet", "--show-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=named)
    assert "_WHET_COMPLETE" in done.stdout
