"""Each runtime ready to be started: its model prepared, its environment made, the C++ program built."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.engines.base import INPUTS_FILE, Inputs
from benchmarks.footprint.installs import Installed, install, megabytes
from benchmarks.footprint.rows import Row
from benchmarks.footprint.runtimes import WHET, Runtime
from benchmarks.processes import run_child

MODEL = "trained/mobilenet_v2"
HERE = Path(__file__).parent
_INPUT, _RAW = "input.npy", "input.raw"


@dataclass(frozen=True)
class Candidate:
    """A runtime and the command of one start, to which the time at which the process is made is added."""

    row: Row
    command: tuple[str, ...]


def prepare_peer(runtime: Runtime, folder: Path, cores: Sequence[int]) -> Candidate:
    """A peer. A failure of any step is the row's result."""
    row = Row(runtime.name, runtime.version, note=runtime.note)
    try:
        installed = _prepare(runtime, row, folder, cores)
    except RuntimeError as error:
        row.failure = str(error)
        return Candidate(row, ())
    return Candidate(row, _python_start(runtime, installed, folder, cores))


def prepare_whet(folder: Path, cores: Sequence[int]) -> list[Candidate]:
    """Whet in Python and in C++: both with one bundle and the same two libraries."""
    row = Row(WHET.name, WHET.version)
    program = Row("whet (C++)", WHET.version, note="installed are the program and two libraries, stripped")
    try:
        installed = _prepare(WHET, row, folder, cores)
    except RuntimeError as error:
        row.failure = program.failure = str(error)
        return [Candidate(row, ()), Candidate(program, ())]
    python = Candidate(row, _python_start(WHET, installed, folder, cores))
    program.model_megabytes = row.model_megabytes
    try:
        path, program.installed_megabytes = _build(installed, folder / "cpp")
    except RuntimeError as error:
        program.failure = str(error)
        return [python, Candidate(program, ())]
    (bundle,) = WHET.files
    return [python, Candidate(program, (str(path), str(folder / bundle), str(folder / _RAW), str(len(cores))))]


def _prepare(runtime: Runtime, row: Row, folder: Path, cores: Sequence[int]) -> Installed:
    """The model's files and its input in `folder`, and the environment."""
    folder.mkdir()
    engine = runtime.engine or WHET.engine
    run_child("benchmarks.engines", ["prepare", str(engine), MODEL, str(folder)], cores)
    (picture,) = Inputs.load(folder / INPUTS_FILE).args
    np.save(folder / _INPUT, picture)
    (folder / _RAW).write_bytes(picture.tobytes())
    if runtime.files:
        row.model_megabytes = sum(megabytes(folder / name) for name in runtime.files if (folder / name).exists())
    installed = install(runtime.requirements(folder), folder)
    row.packages = installed.packages
    row.download_megabytes, row.installed_megabytes = installed.download_megabytes, installed.installed_megabytes
    return installed


def _python_start(runtime: Runtime, installed: Installed, folder: Path, cores: Sequence[int]) -> tuple[str, ...]:
    script = str(HERE / "start.py")
    return str(installed.python), "-I", script, runtime.start, str(folder), str(len(cores))


def _build(installed: Installed, folder: Path) -> tuple[Path, float]:
    """start.cpp over the libraries of Whet's environment: the program, and megabytes of it with them, stripped.

    Raises RuntimeError that says what is missing.
    """
    if shutil.which("cmake") is None:
        raise RuntimeError("cmake is missing: cpp/setup installs it")
    tvm, ffi = installed.site / "whet_runtime" / "lib", installed.site / "tvm_ffi"
    device = folder / "device"
    for step in (
        ["cmake", "-S", str(HERE), "-B", str(folder), f"-DWHET_TVM_LIB={tvm}", f"-DWHET_TVM_FFI={ffi}"],
        ["cmake", "--build", str(folder), "--parallel", "2"],
        ["cmake", "--install", str(folder), "--strip", "--prefix", str(device)],
    ):
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])
    libraries = []
    for library in (tvm / "libtvm_runtime.so", ffi / "lib" / "libtvm_ffi.so"):
        libraries.append(Path(shutil.copy(library, device)))
        subprocess.run(["strip", str(libraries[-1])], check=True)
    program = device / "bin" / "start"
    return program, sum(map(megabytes, (program, *libraries)))
