"""Instructions that a kernel executes on an emulated AArch64 core, counted by qemu's trace of translated blocks.

A small C program calls the kernel once; qemu in user mode writes a line for each block of instructions that it
translates and one for each that it executes. Sums over both are exact counts: of the kernel's own code, with its
prologue and its loads and stores, without the program around it.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

_COMPILER: Final = "aarch64-linux-gnu-gcc"
_SYMBOLS: Final = "aarch64-linux-gnu-nm"
_EMULATOR: Final = "qemu-aarch64-static"
_TRANSLATED: Final = re.compile(r"^(?:0x([0-9a-f]+): |OBJD-T: ([0-9a-f]+)$)")
_EXECUTED: Final = re.compile(r"^Trace \d+: 0x[0-9a-f]+ \[[0-9a-f]+/([0-9a-f]+)/")
_OBJECT: Final = "kernel.o"
_LAST: Final = "__tvm_ffi_main"
_DTYPES: Final = {"float32": (2, 32), "int8": (0, 8), "int32": (0, 32)}

# What a kernel takes: TVM's tagged values (kind 7 is a DLTensor) and, for its scratch memory and its threads, functions
# of the runtime, which run on one thread here.
_PROGRAM: Final = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef struct {{ int32_t kind, unused; void *value; }} Any;
typedef struct {{
  void *data; int32_t device, id, ndim; uint8_t code, bits; uint16_t lanes; int64_t *shape, *strides; uint64_t offset;
}} Tensor;
typedef struct {{ void *barrier; int32_t tasks; }} Environment;
static void *allocate(int device, int id, uint64_t bytes, int code, int bits) {{
  return aligned_alloc(64, (bytes + 63) / 64 * 64);
}}
static int release(int device, int id, void *memory) {{ free(memory); return 0; }}
static int launch(int (*work)(int, Environment *, void *), void *data, int tasks) {{
  Environment environment = {{0, 1}};
  return work(0, &environment, data);
}}
static int barrier(int task, Environment *environment) {{ return 0; }}
void *__TVMBackendAllocWorkspace = allocate, *__TVMBackendFreeWorkspace = release;
void *__TVMBackendParallelLaunch = launch, *__TVMBackendParallelBarrier = barrier;
void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *text) {{ abort(); }}
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int count) {{ abort(); }}
int __tvm_ffi_{name}(void *, Any *, int, Any *);
int main(void) {{
  static int64_t shapes[][8] = {{{shapes}}};
  static const int ranks[] = {{{ranks}}}, codes[] = {{{codes}}}, bits[] = {{{bits}}};
  static Tensor tensors[{count}];
  static Any arguments[{count}], result;
  for (int i = 0; i < {count}; i++) {{
    size_t bytes = bits[i] / 8;
    for (int axis = 0; axis < ranks[i]; axis++) bytes *= shapes[i][axis];
    tensors[i] = (Tensor){{allocate(1, 0, bytes, 0, 0), 1, 0, ranks[i], codes[i], bits[i], 1, shapes[i], 0, 0}};
    memset(tensors[i].data, 1, bytes);
    arguments[i] = (Any){{7, 0, &tensors[i]}};
  }}
  return __tvm_ffi_{name}(0, arguments, {count}, &result);
}}
"""


def executed(kernel: Any, library: Any, cpu: str) -> int:
    """Instructions of one call of a scheduled function, which `library` was built from, on one thread of that core.

    Needs Debian's `gcc-aarch64-linux-gnu` and `qemu-user-static`. Raises subprocess.CalledProcessError where the
    program does not link or the emulated core cannot run it.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        library.write_to_file(str(folder / _OBJECT), "o")
        (folder / "main.c").write_text(_text(str(kernel.attrs["global_symbol"]), list(kernel.params)))
        program = folder / "program"
        files = [str(folder / "main.c"), str(folder / _OBJECT)]
        subprocess.run([_COMPILER, "-O1", "-static", "-no-pie", "-o", str(program), *files], check=True)
        first, last = _extent(folder / _OBJECT, program)
        options = ["-cpu", cpu, "-d", "in_asm,exec,nochain", "-D", "/dev/stderr", "-dfilter", f"{first:#x}..{last:#x}"]
        with subprocess.Popen([_EMULATOR, *options, str(program)], stderr=subprocess.PIPE, text=True) as run:
            assert run.stderr is not None
            total = count(run.stderr)
        if run.returncode:
            raise subprocess.CalledProcessError(run.returncode, str(program))
        return total


def count(trace: Iterable[str]) -> int:
    """Instructions that a trace of `-d in_asm,exec,nochain` executes."""
    sizes: dict[int, int] = {}
    runs: Counter[int] = Counter()
    first: int | None = None
    for line in trace:
        ran = _EXECUTED.match(line)
        if ran is not None:
            runs[int(ran.group(1), 16)] += 1
            continue
        if line.startswith("IN:"):
            first = None
        found = _TRANSLATED.match(line)
        if found is None:
            continue
        if found.group(1) is not None:
            first = int(found.group(1), 16) if first is None else first
            sizes[first] = sizes.get(first, 0) + 1 if first != int(found.group(1), 16) else 1
    return sum(times * sizes[place] for place, times in runs.items())


def _text(name: str, buffers: list[Any]) -> str:
    shapes = [[int(size) for size in buffer.shape] for buffer in buffers]
    kinds = [_DTYPES[str(buffer.dtype)] for buffer in buffers]
    return _PROGRAM.format(
        name=name,
        count=len(buffers),
        shapes=", ".join(f"{{{', '.join(map(str, shape))}}}" for shape in shapes),
        ranks=", ".join(str(len(shape)) for shape in shapes),
        codes=", ".join(str(code) for code, _ in kinds),
        bits=", ".join(str(bits) for _, bits in kinds),
    )


def _extent(library: Path, program: Path) -> tuple[int, int]:
    """First and last address of the kernel's code. Inner functions have no symbols; `_LAST` stands behind them."""
    ours = {_LAST, *(line.split()[-1] for line in _symbols(library) if line.split()[-2] in "tT")}
    places = [
        (int(line.split()[0], 16), int(line.split()[1], 16))
        for line in _symbols(program, "--print-size")
        if line.split()[-1] in ours and len(line.split()) == 4
    ]
    return min(start for start, _ in places), max(start + size for start, size in places) - 1


def _symbols(path: Path, *options: str) -> list[str]:
    command = [_SYMBOLS, "--defined-only", *options, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
