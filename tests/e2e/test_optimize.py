"""The whole way on small models: eager = interpreter = compiled module = loaded bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import whet
from tests.e2e.networks import Counter, Encoder, ResidualConvs, relative_error, seeded
from whet.frontend import import_model
from whet.ir import Interpreter
from whet.ir.target import get_target
from whet.passes import QuantizeStatic

TARGETS = ("x86", "avx2")
_WITHOUT_TORCH = """
import sys, json, numpy as np
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "tvm"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import whet
module = whet.load(sys.argv[1], threads=2)
outputs = module(*np.load(sys.argv[2]).values())
outputs = outputs if isinstance(outputs, dict) else {"0": outputs}
np.savez(sys.argv[3], **outputs)
print(json.dumps(sorted(set(sys.modules) & {"torch", "tvm"})))
"""


@pytest.mark.parametrize("target", TARGETS)
def test_convolutions_in_float(target: str) -> None:
    model, x = seeded(ResidualConvs()), torch.randn(2, 3, 33, 33)
    compiled = whet.optimize(model, target, example_inputs=(x,))
    assert relative_error(compiled(x), model(x)) < 1e-4


@pytest.mark.parametrize("target", [*TARGETS, "avx512"])
def test_int8_agrees_with_the_interpreter_in_every_integer(target: str) -> None:
    """Region by region: every quantized activation and every accumulator is the same integer."""
    model = seeded(ResidualConvs())
    batches = [(torch.randn(1, 3, 33, 33),) for _ in range(4)]
    quantized = whet.passes.PassManager([QuantizeStatic()]).run(
        import_model(model, batches[0]),
        whet.passes.Context(target=get_target(target), calibration=batches),
    )
    graph = quantized.graph.clone()
    graph.outputs = [op.result for op in graph.operations if op.name.endswith(("quantize", "_integer", "max_pool"))]
    graph.outputs = [value for value in graph.outputs if value.type.dtype.is_integer]
    graph.output_structure = None
    assert len(graph.outputs) == 13
    compiled = whet.optimize(graph, target)
    for (x,) in batches:
        for value, actual, expected in zip(graph.outputs, compiled(x), Interpreter(graph)(x), strict=True):
            assert torch.equal(actual, expected), value
    assert relative_error(Interpreter(quantized.graph)(batches[0][0])[0], model(batches[0][0])) < 0.1


def test_a_transformer_of_any_batch_and_length() -> None:
    model = seeded(Encoder())
    tokens, mask = torch.randint(0, 50, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    sizes = {0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("length", max=64)}
    compiled = whet.optimize(model, "x86", example_inputs=(tokens, mask), dynamic_shapes=(sizes, sizes))
    for batch, length in ((2, 9), (1, 1), (3, 17), (8, 64)):
        tokens = torch.randint(0, 50, (batch, length))
        mask = torch.arange(length)[None, :] < torch.randint(1, length + 1, (batch, 1))
        actual, expected = compiled(tokens, mask), model(tokens, mask)
        assert set(actual) == {"hidden", "pooled"}
        for key in expected:
            assert relative_error(actual[key], expected[key]) < 1e-4, (batch, length, key)
    with pytest.raises(
        whet.errors.InputError, match=r"the model wants int64\[batch, length\] .*, and length = 65 is not allowed"
    ):
        compiled(torch.zeros(1, 65, dtype=torch.int64), torch.ones(1, 65, dtype=torch.bool))


def test_state_is_kept_between_calls_and_reset() -> None:
    compiled = whet.optimize(Counter().eval(), "x86", example_inputs=(torch.zeros(4),))
    eager = Counter().eval()
    for step in range(3):
        x = torch.full((4,), float(step))
        for actual, expected in zip(compiled(x), eager(x), strict=True):
            assert torch.equal(actual, expected)
    other = compiled.session()
    assert other(torch.ones(4))[1].item() == 1
    compiled.reset()
    assert compiled(torch.ones(4))[1].item() == 1


def test_the_bundle_runs_without_torch_and_without_the_compiler(tmp_path: Path) -> None:
    model = seeded(Encoder())
    tokens, mask = torch.randint(0, 50, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    compiled = whet.optimize(model, "x86", example_inputs=(tokens, mask))
    compiled.save(tmp_path / "model.whet")
    np.savez(tmp_path / "inputs.npz", tokens=tokens.numpy(), mask=mask.numpy())
    files = [str(tmp_path / name) for name in ("model.whet", "inputs.npz", "outputs.npz")]
    finished = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, *files], capture_output=True, text=True, check=True
    )
    assert json.loads(finished.stdout.splitlines()[-1]) == []
    expected = compiled(tokens, mask)
    for key, value in np.load(tmp_path / "outputs.npz").items():
        np.testing.assert_array_equal(value, expected[key].numpy())


def test_the_reference_backend_has_the_same_face() -> None:
    model, x = seeded(ResidualConvs()), torch.randn(2, 3, 33, 33)
    compiled = whet.optimize(model, "x86", example_inputs=(x,), backend="reference")
    assert relative_error(compiled(x), model(x)) < 1e-6
    with pytest.raises(whet.errors.BackendError, match="reference"):
        compiled.save("never.whet")


def test_armv7_code_is_generated_and_saving_names_the_way_out(tmp_path: Path) -> None:
    model, x = seeded(ResidualConvs()), torch.randn(1, 3, 33, 33)
    compiled = whet.optimize(model, "armv7", example_inputs=(x,))
    assert len(compiled.report().kernels) > 3
    with pytest.raises(whet.errors.TargetError, match="static export"):
        compiled.save(tmp_path / "model.whet")
    assert not list(tmp_path.iterdir())


def test_a_target_of_ones_own_is_one_dataclass() -> None:
    board = whet.Target("my-board", triple="aarch64-unknown-linux-gnu", cpu="cortex-a55", features=("neon", "dotprod"))
    x = torch.randn(1, 3, 33, 33)
    compiled = whet.optimize(seeded(ResidualConvs()), board, example_inputs=(x,))
    assert compiled.report().target == "my-board"
    with pytest.raises(whet.errors.WhetError, match="aarch64"):
        compiled(x)


def test_dumps_and_timings_of_passes(tmp_path: Path) -> None:
    model, x = seeded(ResidualConvs()), torch.randn(1, 3, 33, 33)
    compiled = whet.optimize(
        model, "x86", example_inputs=(x,), passes=[whet.passes.FoldBatchNorm()], backend="reference", dump=tmp_path
    )
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00-input.txt", "01-FoldBatchNorm.txt"]
    assert "batch_norm" in (tmp_path / "00-input.txt").read_text()
    (entry,) = compiled.report().passes
    assert entry.name == "FoldBatchNorm" and entry.seconds > 0 and "FoldBatchNorm" in str(compiled.report())
