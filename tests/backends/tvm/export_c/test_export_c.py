"""Static programs: built with this machine's C compiler, they give the VM's numbers; what cannot be one is refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import whet
from tests.e2e.networks import Counter, Encoder, ResidualConvs, seeded
from tests.static_programs import STRICT, build, checked, run, same_bits
from whet.backends.base import CompiledModule
from whet.backends.tvm.export_c import templates
from whet.backends.tvm.export_c.elf import read_object
from whet.errors import BackendError, InternalError, TargetError
from whet.ir.target import get_target
from whet.passes import BindDimensions, QuantizeStatic

SANITIZERS = "-g -fsanitize=address,undefined -fno-sanitize-recover=all"


def flat(result: object) -> list[Tensor]:
    """The tensors of a result, in order."""
    if isinstance(result, Tensor):
        return [result]
    items = result.values() if isinstance(result, dict) else result
    return [tensor for item in items for tensor in flat(item)]  # type: ignore[attr-defined]


def agrees(compiled: CompiledModule, folder: Path, calls: list[tuple[Tensor, ...]], *variables: str) -> None:
    """The program gives the VM's bits, call after call with one state."""
    compiled.export_c(folder)
    actual = run(build(folder, *variables), compiled.manifest, calls)
    session = compiled.session()
    for inputs, outputs in zip(calls, actual, strict=True):
        for left, right in zip(outputs, flat(session(*inputs)), strict=True):
            assert same_bits(left, right)


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_convolutions_are_the_vms_bit_for_bit(precision: str, tmp_path: Path) -> None:
    x = torch.randn(1, 3, 17, 17)
    passes = [QuantizeStatic()] if precision == "int8" else []
    compiled = whet.optimize(
        seeded(ResidualConvs()), "x86", example_inputs=(x,), passes=passes, calibration=[(x,)] if passes else None
    )
    # the second run finds the arena full of the first one's numbers
    agrees(compiled, tmp_path, [(x,), (torch.randn(1, 3, 17, 17),)])


def test_integers_booleans_and_a_dictionary_of_outputs(tmp_path: Path) -> None:
    inputs = torch.randint(0, 50, (2, 6)), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    agrees(whet.optimize(seeded(Encoder()), "x86", example_inputs=inputs), tmp_path, [inputs])


class Swap(nn.Module):
    """States that change places, one that is kept as it is, and one that an input replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.arange(4.0))
        self.register_buffer("b", torch.zeros(4))
        self.register_buffer("c", torch.ones(3, dtype=torch.int64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = self.a.clone(), self.b.clone()
        result = a - b + x
        self.a.copy_(b)
        self.b.copy_(a)
        self.c.copy_(self.c * 3)
        return result, a, self.c + 0


@pytest.mark.parametrize("model", [Counter, Swap])
def test_state_moves_on_from_run_to_run(model: type[nn.Module], tmp_path: Path) -> None:
    calls = [(torch.randn(4),) for _ in range(3)]
    compiled = whet.optimize(model().eval(), "x86", example_inputs=calls[0])
    agrees(compiled, tmp_path, calls, f"CFLAGS={STRICT} {SANITIZERS}")


class Aliases(nn.Module):
    """Outputs that share memory: one value twice, a view of it, an input, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.linear(x)
        return y, y.reshape(4, 2), y, x.reshape(3, 4), self.linear.bias, y * 2


def test_outputs_that_share_memory_are_copies(tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    agrees(whet.optimize(Aliases().eval(), "x86", example_inputs=(x,)), tmp_path, [(x,)])


def test_a_program_without_kernels(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 4)
    compiled = whet.optimize(nn.Flatten().eval(), "x86", example_inputs=(x,))
    program = compiled.export_c(tmp_path / "new" / "folder")
    assert (program.kernels, program.arena_bytes, program.weights_bytes, program.code_bytes) == (0, 0, 0, 0)
    agrees(compiled, tmp_path, [(x,)])


class Narrow(nn.Module):
    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.relu(), y.exp(), z // 3


def test_narrow_types_and_tensors_without_elements(tmp_path: Path) -> None:
    inputs = torch.randn(5).half(), torch.randn(3, 0).bfloat16(), torch.tensor(-7, dtype=torch.int16)
    compiled = whet.optimize(Narrow().eval(), "x86", example_inputs=inputs)
    agrees(compiled, tmp_path, [inputs])


DRIVER = """
#include <stdio.h>
#include <string.h>
#include "model.h"
static _Alignas(MODEL_ALIGNMENT) MODEL_INPUT_0_TYPE x[MODEL_INPUT_0_ELEMENTS + 1] = {1, 2, 3, 4};
static _Alignas(MODEL_ALIGNMENT) MODEL_OUTPUT_0_TYPE mean[MODEL_OUTPUT_0_ELEMENTS];
static _Alignas(MODEL_ALIGNMENT) MODEL_OUTPUT_1_TYPE count[MODEL_OUTPUT_1_ELEMENTS];
static const int shape[MODEL_INPUT_0_RANK] = MODEL_INPUT_0_SHAPE;
static void report(int code)
{
    printf("%d %d %s\\n", code, (int)count[0], model_error());
}
int main(void)
{
    const void *inputs[] = {x}, *crooked[] = {x + 1};
    void *outputs[] = {mean, count};
    report(model_run(inputs, outputs));
    report(model_init());
    report(model_run(crooked, outputs));
    report(model_run(inputs, outputs));
    report(model_run(inputs, outputs));
    model_reset();
    report(model_run(inputs, outputs));
    printf("%g %d %s %s\\n", mean[3], shape[0], MODEL_INPUT_0_NAME, MODEL_OUTPUT_1_DTYPE);
    return 0;
}
"""


def test_the_documented_calls_from_c(tmp_path: Path) -> None:
    compiled = whet.optimize(Counter().eval(), "x86", example_inputs=(torch.zeros(4),))
    program = compiled.export_c(tmp_path)
    (tmp_path / "main.c").write_text(DRIVER)
    printed = checked(build(tmp_path, f"CFLAGS={STRICT} {SANITIZERS}")).splitlines()
    assert printed == [
        "-1 0 model_run was called before model_init",
        "0 0 model_run was called before model_init",
        "-1 0 input 0 (x) lies at no multiple of 64 bytes",
        "0 1 ",
        "0 2 ",
        "0 1 ",
        "4 4 x int64",
    ]
    # 4 floats and one int64, each in a line of its own; initial values of zeros take no constant data
    assert program.state_bytes == 128
    assert f"#define MODEL_STATE_BYTES {program.state_bytes}\n" in (tmp_path / "model.h").read_text()


def test_what_a_kernel_says_comes_out_of_model_error(tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    compiled = whet.optimize(Aliases().eval(), "x86", example_inputs=(x,))
    compiled.export_c(tmp_path)
    source = tmp_path / "model.c"
    text = source.read_text()
    assert "{2, 32, 1}" in text
    source.write_text(text.replace("{2, 32, 1}", "{2, 64, 1}", 1))  # an argument of another type
    with pytest.raises(RuntimeError, match=r"kernel \w+: TypeError: Mismatched .*dtype"):
        run(build(tmp_path), compiled.manifest, [(x,)])


def padded() -> nn.Module:
    """Its kernels copy what they pad into scratch memory."""
    return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)).eval()


def test_scratch_memory_is_bounded_by_what_was_planned(tmp_path: Path) -> None:
    x = torch.randn(1, 16, 9, 9)
    compiled = whet.optimize(padded(), "x86", example_inputs=(x,))
    compiled.export_c(tmp_path)
    source = tmp_path / "model.c"
    text, replaced = re.subn(r"(\(arena \+ \d+\)), \d+}", r"\1, 0}", source.read_text())
    assert replaced
    source.write_text(text)
    with pytest.raises(RuntimeError, match=r"kernel \w+: the scratch memory is too small"):
        run(build(tmp_path), compiled.manifest, [(x,)])


def test_the_cmake_project_builds_the_same(tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    compiled = whet.optimize(Aliases().eval(), "x86", example_inputs=(x,))
    compiled.export_c(tmp_path)
    checked("cmake", "-S", tmp_path, "-B", tmp_path / "build")
    checked("cmake", "--build", tmp_path / "build")
    ((actual, *_),) = run(tmp_path / "build" / "example", compiled.manifest, [(x,)])
    assert same_bits(actual, flat(compiled(x))[0])


def test_two_exports_are_the_same_files_and_other_weights_another_assembly(tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    folders = [tmp_path / name for name in ("one", "two", "other")]
    model = Aliases().eval()
    for folder in folders:
        if folder.name == "other":
            nn.init.ones_(model.linear.weight)
        program = whet.optimize(model, "x86", example_inputs=(x,)).export_c(folder)
        assert sorted(program.files) == sorted(path.name for path in folder.iterdir())
    one, two, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == two
    assert {name for name in one if one[name] != other[name]} == {"weights.bin", "weights.S"}


def test_the_report_prints_the_peak(tmp_path: Path) -> None:
    compiled = whet.optimize(padded(), "armv7", example_inputs=(torch.randn(1, 16, 9, 9),))
    program = compiled.export_c(tmp_path)
    assert 0 < program.live_bytes <= program.arena_bytes
    assert f"arena    {program.arena_bytes:>12} B" in str(program)
    assert "armv7" in str(program)
    assert program.weights_bytes == (tmp_path / "weights.bin").stat().st_size
    assert 0 < program.code_bytes < (tmp_path / "kernels.o").stat().st_size
    assert (tmp_path / "kernels.o").read_bytes()[4] == 1  # 32 bits


def test_symbolic_dimensions_are_refused_with_the_way_out(tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    batch = {0: torch.export.Dim("batch", max=8)}
    compiled = whet.optimize(nn.Linear(6, 4).eval(), "x86", example_inputs=(x,), dynamic_shapes=(batch,))
    with pytest.raises(BackendError, match=r'batch \(1\.\.8.*\), of %input.*\n.*BindDimensions\({"batch": \.\.\.}\)'):
        compiled.export_c(tmp_path / "never")
    assert not list(tmp_path.iterdir())
    bound = [BindDimensions({"batch": 2})]
    compiled = whet.optimize(nn.Linear(6, 4).eval(), "x86", example_inputs=(x,), dynamic_shapes=(batch,), passes=bound)
    agrees(compiled, tmp_path, [(x,)])


def test_what_cannot_be_a_static_program_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 6)
    mac = dataclasses.replace(get_target("arm"), name="mac", triple="arm64-apple-darwin")
    compiled = whet.optimize(Aliases().eval(), mac, example_inputs=(x,))
    with pytest.raises(TargetError, match=r"mac.*darwin"):
        compiled.export_c(tmp_path / "mac")
    reference = whet.optimize(Aliases().eval(), "x86", example_inputs=(x,), backend="reference")
    with pytest.raises(BackendError, match="reference"):
        reference.export_c(tmp_path / "reference")
    monkeypatch.setattr(templates, "PROVIDED", frozenset())
    compiled = whet.optimize(Aliases().eval(), "x86", example_inputs=(x,))
    with pytest.raises(BackendError, match=r"TVMFFIErrorSetRaisedFromCStrParts.*save"):
        compiled.export_c(tmp_path)
    assert not (tmp_path / "kernels.o").exists()


@pytest.mark.cuda
def test_cuda_is_refused(tmp_path: Path) -> None:
    compiled = whet.optimize(nn.Linear(4, 4).eval(), "cuda", example_inputs=(torch.randn(2, 4),))
    with pytest.raises(TargetError, match="cuda: a static program runs on a CPU"):
        compiled.export_c(tmp_path)


def test_only_objects_are_read_as_objects() -> None:
    with pytest.raises(InternalError, match="ELF"):
        read_object(b"\xcf\xfa\xed\xfe" + bytes(60))
