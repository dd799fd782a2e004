"""What this machine reaches at most, measured on the spot: multiply-adds in f32, bf16 and int8, and copies.

Multiply-adds run in registers alone, in so many independent sums that every port is busy. Copies are measured by size,
because what fits a cache moves faster. Where there is a matrix unit (AMX), bf16 and int8 are its multiplications.

    python -m benchmarks.peaks --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from benchmarks.environment import wide_console

if TYPE_CHECKING:
    from whet.backends.tvm.intrinsics.instructions import DotInstruction
    from whet.ir.target import Target

F32, BF16, INT8 = "f32", "bf16", "int8"
F32_DTYPE: Final = "float32"

_STEPS: Final = 1 << 17
_CHAINS: Final = 12
"""Independent sums: more than latency times ports of any core, and with their operands fewer than it has registers."""
_LEAST_REPEATS: Final = 3
_REPEAT_SECONDS: Final = 0.2
# Read and written together: from what a first-level cache holds to what only memory does.
_COPY_BYTES: Final = tuple(1 << power for power in range(16, 29, 2))


# `call` gives the new sums of A, X and Y; `code` is LLVM's text of what it calls.
_MULTIPLY_ADDS: Final = """
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(
    X: T.Buffer(({elements},), "{left}"),
    Y: T.Buffer(({elements},), "{right}"),
    Z: T.Buffer(({tasks}, {chains}, {lanes}), "{total}"),
) -> None:
    T.func_attr({{"tirx.noalias": True}})
    for p in T.parallel({tasks}, annotations={code}):
        with T.sblock("task"):
            vp = T.axis.spatial({tasks}, p)
            A = T.sblock_alloc_buffer(({chains}, {lanes}), "{total}", scope="local")
            for c in T.unroll({chains}):
                A[c, {vector}] = Z[vp, c, {vector}]
            for k in range({steps}):
                for c in T.unroll({chains}):
                    A[c, {vector}] = {call}
            for c in T.unroll({chains}):
                Z[vp, c, {vector}] = A[c, {vector}]
"""

_COPY: Final = """
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(X: T.Buffer(({tasks}, {vectors}, 16), "float32"), Y: T.Buffer(({tasks}, {vectors}, 16), "float32")) -> None:
    T.func_attr({{"tirx.noalias": True}})
    for p in T.parallel({tasks}):
        for i in range({vectors}):
            for l in T.vectorized(16):
                with T.sblock("copy"):
                    vp, vi, vl = T.axis.remap("SSS", [p, i, l])
                    Y[vp, vi, vl] = X[vp, vi, vl]
"""

# Operands come out of L1 while others are multiplied: as in a kernel, there is no other way into the registers.
_MATRIX_MULTIPLY_ADDS: Final = """
# from tvm.script import tirx as T
@T.prim_func(s_tir=True)
def main(
    X: T.Buffer(({rows}, {depth}), "{left}"),
    Y: T.Buffer(({groups}, {columns}, {group}), "{right}"),
    Z: T.Buffer(({tasks}, {rows}, {columns}), "{total}"),
) -> None:
    T.func_attr({{"tirx.noalias": True}})
    for p in T.parallel({tasks}, annotations={code}):
        with T.sblock("sums"):
            vp = T.axis.spatial({tasks}, p)
            T.evaluate(T.call_extern("int32", "{configure}"))
            T.evaluate(T.call_extern("int32", "{zero}"))
            for i in range({steps}):
                T.evaluate(
                    T.call_extern(
                        "int32", "{step}", X.access_ptr("r"), T.int64({row}), T.int64({next}), Y.access_ptr("r"),
                        T.int64({line}),
                    )
                )
            T.evaluate(
                T.call_extern(
                    "int32", "{store}", T.address_of(Z[vp, 0, 0]), T.int64({out_row}), T.int64({out_next})
                )
            )
            T.evaluate(T.call_extern("int32", "{release}"))
"""


@dataclass(frozen=True)
class Peaks:
    """What the machine reaches.

    Attributes:
        threads: on how many threads.
        operations: by precision, operations a second; a multiply-add is two.
        copies: bytes read and written together -> bytes a second of a copy of that size.
    """

    threads: int
    operations: Mapping[str, float]
    copies: Mapping[int, float]

    def bandwidth(self, size: float) -> float:
        """Bytes a second for `size` bytes: the fastest copy of at least as many, which the same cache holds."""
        larger = [speed for copied, speed in self.copies.items() if copied >= size]
        return max(larger or [self.copies[max(self.copies)]])

    def seconds(self, precision: str, operations: float, moved: float) -> tuple[float, bool]:
        """The least time of a kernel (Williams et al., CACM 2009), and whether memory decides it."""
        computing, moving = operations / self.operations[precision], moved / self.bandwidth(moved)
        return max(computing, moving), moving > computing

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Peaks:
        """What `asdict` and JSON made of it."""
        copies = {int(size): float(speed) for size, speed in record["copies"].items()}
        return cls(int(record["threads"]), dict(record["operations"]), copies)


def measure_peaks(threads: int, seconds: float = _REPEAT_SECONDS) -> Peaks:
    """Measure this machine, each peak for that long.

    TVM's pool must not have begun with another number of threads in this process.
    """
    os.environ["TVM_NUM_THREADS"] = str(threads)
    from whet.ir.target import get_target

    target = get_target("x86" if os.uname().machine == "x86_64" else "arm")
    operations = {precision: peak_operations(precision, target, threads, seconds) for precision in (F32, BF16, INT8)}
    copies = {size: _copy(size, target, threads, seconds) for size in _COPY_BYTES}
    return Peaks(threads, {name: value or operations[F32] for name, value in operations.items()}, copies)


@dataclass(frozen=True)
class _MultiplyAdd:
    """An instruction that multiplies and adds vectors, as a kernel calls it.

    Attributes:
        left: type of one factor.
        right: type of the other.
        total: type of the sums.
        lanes: sums in a vector.
        group: products that each sum takes up.
        elements: in a vector of factors.
        call: the new sums, of A[c], X and Y.
        code: LLVM's text of a function that `call` calls; None: it needs none.
    """

    left: str
    right: str
    total: str
    lanes: int
    group: int
    elements: int
    call: str
    code: str | None = None


def _multiply_add(precision: str, target: Target) -> _MultiplyAdd | None:
    """What Whet's kernels of that precision multiply with; None where the target has no instruction for it."""
    from whet.backends.tvm.intrinsics.dot_product import instruction_call
    from whet.backends.tvm.intrinsics.instructions import bfloat_instruction, dot_instruction
    from whet.backends.tvm.intrinsics.llvm_code import imported_code

    if precision == F32:
        lanes = target.vector_bits // 32
        vector = f"T.ramp(T.int32(0), 1, {lanes})"
        return _MultiplyAdd(
            F32_DTYPE, F32_DTYPE, F32_DTYPE, lanes, 1, lanes, f"A[c, {vector}] * X[{vector}] + Y[{vector}]"
        )
    chosen = dot_instruction(target, rows=None) if precision == INT8 else bfloat_instruction(target)
    if chosen is None or chosen.llvm is None:
        return None
    code = imported_code(chosen)
    total = f"A[c, T.ramp(T.int32(0), 1, {chosen.lanes})]"
    call = instruction_call(chosen, total, _factors(chosen))
    return _MultiplyAdd(
        chosen.activation,
        chosen.weight,
        chosen.total,
        chosen.lanes,
        chosen.group,
        chosen.elements,
        call if chosen.accumulates else f"{total} + {call}",
        code,
    )


def _factors(chosen: DotInstruction) -> str:
    """The vectors that it multiplies; of X the first group alone where the instruction spreads it itself."""
    x = f"X.vload([0], dtype='{chosen.activation}x{chosen.elements}')"
    if chosen.by_element:
        first = f"X.vload([0], dtype='{chosen.activation}x{chosen.group}')"
        x = f"T.reinterpret({first}, dtype='int{chosen.bits_of_group}')"
    return f"{x}, Y.vload([0], dtype='{chosen.weight}x{chosen.elements}')"


def peak_operations(precision: str, target: Target, threads: int, seconds: float = _REPEAT_SECONDS) -> float:
    """Operations a second; 0 without an instruction of the precision."""
    from whet.backends.tvm.intrinsics.instructions import matrix_instruction

    matrix = None if precision == F32 else matrix_instruction(target, "uint8" if precision == INT8 else "int16")
    if matrix is not None:
        return _matrix_operations(matrix, target, threads, seconds)
    one = _multiply_add(precision, target)
    if one is None:
        return 0.0
    source = _MULTIPLY_ADDS.format(
        **vars(one) | {"code": {} if one.code is None else {"pragma_import_llvm": one.code}},
        vector=f"T.ramp(T.int32(0), 1, {one.lanes})",
        tasks=threads,
        chains=_CHAINS,
        steps=_STEPS,
    )
    shapes = ((one.elements,), (one.elements,), (threads, _CHAINS, one.lanes))
    run = _kernel(source, target, tuple(zip(shapes, (one.left, one.right, one.total), strict=True)))
    return 2.0 * _STEPS * _CHAINS * one.lanes * one.group * threads / _least_seconds(run, seconds)


def _matrix_operations(instruction: DotInstruction, target: Target, threads: int, seconds: float) -> float:
    """Operations a second of a matrix unit on two by two registers of sums."""
    from whet.backends.tvm.intrinsics.instructions import MATRIX_ROW_BYTES, MATRIX_ROWS, MatrixTile
    from whet.backends.tvm.intrinsics.matrix_unit import matrix_code, matrix_function
    from whet.backends.tvm.kernels.expressions import element_bytes

    size = element_bytes(instruction.activation)
    tile = MatrixTile(rows=MATRIX_ROWS, depth=MATRIX_ROW_BYTES // size, down=2, across=2)
    shaped = replace(instruction, matrix=tile)
    rows, columns = tile.rows * tile.down, instruction.columns * tile.across
    groups = tile.depth // instruction.group
    parts = ("configure", "zero", "step", "store", "release")
    source = _MATRIX_MULTIPLY_ADDS.format(
        **{part: matrix_function(shaped, part) for part in parts},
        code={"pragma_import_llvm": matrix_code(shaped)},
        tasks=threads,
        steps=_STEPS,
        rows=rows,
        depth=tile.depth,
        columns=columns,
        group=instruction.group,
        groups=groups,
        left=instruction.activation,
        right=instruction.weight,
        total=instruction.total,
        row=tile.depth * size,
        next=tile.rows * tile.depth * size,
        line=columns * instruction.group * size,
        out_row=4 * columns,
        out_next=4 * columns * tile.rows,
    )
    shapes = ((rows, tile.depth), (groups, columns, instruction.group), (threads, rows, columns))
    dtypes = (instruction.activation, instruction.weight, instruction.total)
    run = _kernel(source, target, tuple(zip(shapes, dtypes, strict=True)))
    return 2.0 * _STEPS * rows * columns * tile.depth * threads / _least_seconds(run, seconds)


def _copy(size: int, target: Target, threads: int, seconds: float) -> float:
    """Bytes a second, read and written, of a copy that moves `size` bytes."""
    vectors = size // (2 * 4 * 16 * threads)
    shape = (threads, vectors, 16)
    run = _kernel(_COPY.format(tasks=threads, vectors=vectors), target, ((shape, "float32"), (shape, "float32")))
    return 2 * 4 * 16 * vectors * threads / _least_seconds(run, seconds)


def _kernel(source: str, target: Target, tensors: tuple[tuple[tuple[int, ...], str], ...]) -> Callable[[], None]:
    """The machine code of a kernel, on tensors of zeros."""
    import numpy as np
    import tvm
    from tvm.script import from_source

    from whet.backends.tvm.pipeline import build_kernel
    from whet.backends.tvm.targets import tvm_target

    function: Any = build_kernel(from_source(source), tvm_target(target))["main"]
    arrays = [tvm.runtime.tensor(np.zeros(shape, dtype)) for shape, dtype in tensors]
    return lambda: function(*arrays)


def _least_seconds(run: Callable[[], None], seconds: float) -> float:
    """The shortest of many calls: what else runs on the machine only adds to it."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < _LEAST_REPEATS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def table(peaks: Peaks) -> Table:
    """The peaks as people read them."""
    result = Table("peak", "value", title=f"{peaks.threads} thread(s)")
    for precision, operations in peaks.operations.items():
        result.add_row(f"{precision} multiply-adds", f"{operations / 1e9:.0f} GOP/s")
    for size, speed in peaks.copies.items():
        result.add_row(f"copy of {size / 2**20:g} MiB, read and written", f"{speed / 1e9:.0f} GB/s")
    return result


def main() -> None:
    """Command line; the last line of standard output is JSON where `--child` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write them there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    peaks = measure_peaks(options.threads)
    text = json.dumps(asdict(peaks))
    if options.child:
        print(text)
        return
    wide_console().print(table(peaks))
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
