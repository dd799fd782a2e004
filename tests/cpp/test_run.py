"""What the C++ runtime computes: bit for bit what the Python runtime does, on many threads, without growing."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import whet
from benchmarks.models.small import LeNet5, LeNet300
from tests.cpp.programs import Programs
from tests.runtime.conftest import Array, Model
from whet.ir.target import get_target
from whet.passes import QuantizeStatic
from whet.runtime import cpu, dimensions, load

pytestmark = pytest.mark.timeout(1200)


def run(programs: Programs, bundle: Path, inputs: list[Array], folder: Path, **options: str) -> list[Array]:
    """Outputs of the example program."""
    files = [folder / f"in.{index}.npy" for index in range(len(inputs))]
    for file, array in zip(files, inputs, strict=True):
        np.save(file, array)
    printed = programs.output("run_bundle", bundle, *files, "--output", folder / "out", "--threads", "1", **options)
    count = sum(line.startswith("output ") for line in printed.splitlines())
    return [np.load(folder / f"out.{index}.npy") for index in range(count)]


@pytest.mark.parametrize("network", [LeNet300, LeNet5])
@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_lenet(network: type[torch.nn.Module], precision: str, plain: Programs, tmp_path: Path) -> None:
    model, digits = network().eval(), torch.rand(4, 1, 28, 28)
    passes = () if precision == "f32" else (QuantizeStatic(),)
    whet.optimize(model, "x86", example_inputs=(digits,), passes=passes, calibration=[(digits,)]).save(
        tmp_path / "m.whet"
    )
    (actual,) = run(plain, tmp_path / "m.whet", [digits.numpy()], tmp_path)
    np.testing.assert_array_equal(actual, whet.load(tmp_path / "m.whet")(digits.numpy()))
    # Random weights: the scores lie close together.
    assert np.abs(actual - model(digits).detach().numpy()).max() < 0.05


def test_symbolic_sizes_and_packed_weights(affine: Model, shrunk_bundle: Path, plain: Programs, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for rows in (2, 64):
        x, mask = generator.normal(size=(rows, 8)).astype("f4"), generator.random((rows, 8)) < 0.5
        y, rest = run(plain, shrunk_bundle, [x, mask], tmp_path)
        expected = load(shrunk_bundle)(x, mask=mask)
        np.testing.assert_array_equal(y, expected["y"])
        np.testing.assert_array_equal(rest, expected["rest"][0])


def test_state(counter_bundle: Path, sanitized: Programs) -> None:
    """The values of tests/runtime/test_session.py: outputs and state are copies of the caller's and the model's."""
    assert sanitized.output("drive", "sessions", counter_bundle).splitlines() == [
        "first 3 4 5 6 -1 -1 -1 -1",
        "second 13 14 15 16 1 1 1 1",
        "first again 3 4 5 6 -1 -1 -1 -1",
        "reset 3 4 5 6 -1 -1 -1 -1",
        "session 3 4 5 6 -1 -1 -1 -1",
        "copy 5 6 7 8 1 1 1 1",
        "session again 5 6 7 8 1 1 1 1",
        "session reset 3 4 5 6 -1 -1 -1 -1",
        "child 5 6 7 8 1 1 1 1",
    ]


def test_wrong_inputs_are_named(affine_bundle: Path, sanitized: Programs) -> None:
    wanted = "the model wants float32[s0, 8] (s0: 2..64, a multiple of 2)"
    assert sanitized.output("drive", "inputs", affine_bundle).splitlines() == [
        "2 outputs",
        "bad input: 1 inputs were given; the model takes 2: (x, mask)",
        f"bad input: input 'x' is bool[4, 8]; {wanted}",
        f"bad input: input 'x' is float32[4, 9]; {wanted}",
        f"bad input: input 'x' is float32[4, 8, 1]; {wanted}",
        "bad input: input 'mask' is bool[6, 8]; the model wants bool[s0, 8] (s0: 2..64, a multiple of 2), "
        "and s0 is 4 in another dimension",
        f"bad input: input 'x' is float32[3, 8]; {wanted}, and s0 = 3 is not allowed",
        f"bad input: input 'x' is float32[66, 8]; {wanted}, and s0 = 66 is not allowed",
        f"bad input: input 'x' is float32[-4, 8]; {wanted}, and a size is negative",
        "bad input: input 'x' has no data",
        f"bad input: input 'x' is of no type[4, 8]; {wanted}",
    ]


def expression(generator: random.Random, depth: int) -> str:
    """A random expression over s0 and s1."""
    if depth == 0 or generator.random() < 0.2:
        return generator.choice(("s0", "s1", str(generator.randrange(50))))
    left, right = (expression(generator, depth - 1) for _ in range(2))
    sign = generator.choice(("+", "-", "*", "//", "%"))
    return generator.choice((f"{left} {sign} {right}", f"({left}){sign}({right})", f"-{left}", f"max({left}, {right})"))


def python_reading(text: str, s0: int, s1: int, value: int) -> str:
    """What the Python runtime makes of a line of `drive dimensions`."""
    try:
        parsed = dimensions.parse(text)
    except ValueError:
        return "refused"
    try:
        result = str(parsed.evaluate({"s0": s0, "s1": s1}))
    except (ZeroDivisionError, KeyError):
        result = "none"
    solution = parsed.solve(value, {"s1": s1})
    return f"{result} {'none' if solution is None else f'{solution[0]}={solution[1]}'}"


def test_expressions_of_sizes(sanitized: Programs) -> None:
    """Grammar, rounding, solving for a symbol: as in Python."""
    generator = random.Random(0)
    texts = ["", " ", "s0 +", "* 2", "(s0", "s0 s1", "2 3", "s0 / 2", "s0 ** 2", "1.5", "max", "max()", "max(1,)", "é"]
    texts += ["(" * 200 + "1" + ")" * 200, "-" * 200 + "1", "1+" * 600 + "1", "x + 1", "sum(s0, 1)", "min(s0, 3) % -2"]
    texts += [expression(generator, 4) for _ in range(600)]
    texts += [f"{generator.randint(-5, 5)}*s0 + {generator.randrange(9)} - s1".lstrip("-") for _ in range(200)]
    cases = [(text, *(generator.randrange(1, 9) for _ in range(2)), generator.randint(-20, 60)) for text in texts]
    done = sanitized.run("drive", "dimensions", lines=["\t".join(map(str, case)) for case in cases])
    assert done.returncode == 0, done.stderr
    for case, line in zip(cases, done.stdout.splitlines(), strict=True):
        assert line == python_reading(*case), case


def test_features_are_those_that_python_finds(plain: Programs) -> None:
    """By CPUID here, out of /proc/cpuinfo there."""
    printed = plain.output("drive", "features").strip()
    assert set(printed.split(",")) & cpu.FEATURES[cpu.host_arch()] == cpu.host_features()


@pytest.mark.parametrize("kind", ["affine_bundle", "shrunk_bundle"])
def test_eight_threads(kind: str, plain: Programs, request: pytest.FixtureRequest) -> None:
    """8 threads x 1000 calls on one module give what one thread does."""
    bundle = request.getfixturevalue(kind)
    assert plain.output("drive", "threads", bundle, "8", "1000") == "8000 calls, 0 wrong\n"


def test_threads_under_the_sanitizer(affine_bundle: Path, sanitized: Programs) -> None:
    assert sanitized.output("drive", "threads", affine_bundle, "4", "50", TVM_NUM_THREADS="2") == "200 calls, 0 wrong\n"


def test_modules_in_turn(affine_bundle: Path, counter_bundle: Path, sanitized: Programs) -> None:
    """The system's loader must not take the file of one module for that of a module before it."""
    sanitized.output("drive", "turns", affine_bundle, counter_bundle, "20")


def test_a_system_without_files_in_memory(counter_bundle: Path, plain: Programs, tmp_path: Path) -> None:
    """The library then lies in a folder of its own, which is gone when the module is."""
    (tmp_path / "none.c").write_text(
        "#include <errno.h>\nint memfd_create(const char *n, unsigned f) { errno = ENOSYS; return -1; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "none.so", "none.c"], cwd=tmp_path, check=True)
    folder = tmp_path / "temporary"
    folder.mkdir()
    environment = {"LD_PRELOAD": str(tmp_path / "none.so"), "TMPDIR": str(folder)}
    assert plain.verdicts("open", [counter_bundle] * 2, **environment) == [("ok", "")] * 2
    assert list(folder.iterdir()) == []
    folder.rmdir()
    ((status, message),) = plain.verdicts("open", [counter_bundle], **environment)
    assert status == "cannot load" and "Name a folder with more space in TMPDIR" in message


def test_memory_does_not_grow(affine_bundle: Path, counter_bundle: Path, plain: Programs) -> None:
    for bundle in (affine_bundle, counter_bundle):
        assert int(plain.output("drive", "memory", bundle, "10000")) < 200


@pytest.mark.slow
def test_valgrind_finds_nothing(tmp_path: Path, plain: Programs) -> None:
    """All of it, the compiled code too; for AVX2, since valgrind knows nothing wider."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is missing")
    if not set(get_target("avx2").features) <= cpu.host_features():
        pytest.skip("this processor has no AVX2")
    model, digits = LeNet300().eval(), torch.rand(4, 1, 28, 28)
    whet.optimize(model, "avx2", example_inputs=(digits,)).save(tmp_path / "m.whet")
    np.save(tmp_path / "x.npy", digits.numpy())
    done = plain.run(
        "run_bundle",
        *(tmp_path / "m.whet", tmp_path / "x.npy", "--output", tmp_path / "out", "--threads", "1", "--repeat", "3"),
        prefix=("valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"),
        timeout=1000,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    expected = whet.load(tmp_path / "m.whet")(digits.numpy())
    np.testing.assert_allclose(np.load(tmp_path / "out.0.npy"), expected, rtol=1e-5, atol=1e-6)
