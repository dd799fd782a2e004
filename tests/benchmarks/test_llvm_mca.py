"""llvm-mca's reports are read, releases without a core's model are refused, and qemu's traces are summed."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.arm_counts import count
from benchmarks.llvm_mca import CORES, Analyzer, McaError, _throughput, find_analyzer

REPORT = {
    "TargetInfo": {"Resources": ["N1UnitB", "N1UnitL.\0", "N1UnitL.\1", "N1UnitV0"]},
    "CodeRegions": [
        {
            "InstructionInfoView": {"InstructionList": [{}, {}]},
            "ResourcePressureView": {
                "ResourcePressureInfo": [
                    {"InstructionIndex": 0, "ResourceIndex": 3, "ResourceUsage": 1},
                    {"InstructionIndex": 2, "ResourceIndex": 1, "ResourceUsage": 2},
                    {"InstructionIndex": 2, "ResourceIndex": 2, "ResourceUsage": 1},
                    {"InstructionIndex": 2, "ResourceIndex": 3, "ResourceUsage": 4},
                ]
            },
            "SummaryView": {"Iterations": 100, "TotalCycles": 412, "TotaluOps": 600, "DispatchWidth": 8},
        }
    ],
}
BOTTLENECKS = """
Throughput Bottlenecks:
  Resource Pressure       [ 45.37% ]
  - N1UnitV0  [ 45.34% ]
  - N1UnitL  [ 0.01% ]
  Data Dependencies:      [ 10.04% ]
  - Register Dependencies [ 10.04% ]
"""
TRACE = """
IN: kernel
0x00400100:  2a0003e2  mov      w2, w0
0x00400104:  5400012d  b.le     #0x400700

Trace 0: 0x7f38a4030100 [0000000001009331/0000000000400100/00000001/00000200] kernel
IN: kernel
0x00400108:  52800001  movz     w1, #0
0x0040010c:  52800000  movz     w0, #0
0x00400110:  54ffff81  b.ne     #0x400108

Trace 0: 0x7f38a4030280 [0000000001009331/0000000000400108/00000001/00000200] kernel
Trace 0: 0x7f38a4030280 [0000000001009331/0000000000400108/00000001/00000200] kernel
"""


def test_a_report_is_read() -> None:
    found = _throughput(REPORT, BOTTLENECKS)
    assert (found.cycles, found.uops, found.dispatch_width) == (4.12, 6.0, 8)
    assert found.pressure == {"L": 1.5, "V0": 4.0}
    assert found.bottlenecks == pytest.approx({"V0": 0.4534, "register dependencies": 0.1004})


def test_a_release_without_the_model_is_refused() -> None:
    with pytest.raises(McaError, match=r"LLVM 14.*in LLVM 16 and later"):
        Analyzer("llvm-mca", 14).throughput("", CORES["neoverse-n1"])


def test_executed_blocks_are_summed() -> None:
    assert count(TRACE.splitlines()) == 2 + 3 + 3


@pytest.mark.skipif(shutil.which("llvm-mca") is None, reason="llvm-mca is not installed")
def test_independent_multiply_adds_reach_the_peak() -> None:
    analyzer = find_analyzer()
    assert analyzer.peak("fmla v{0}.4s, v30.4s, v31.4s", CORES["cortex-a72"]) == pytest.approx(1, rel=0.05)
    chain = analyzer.throughput("fmla v0.4s, v30.4s, v31.4s\n" * 4, CORES["cortex-a72"])
    assert chain.cycles > 4 and max(chain.bottlenecks, key=lambda name: chain.bottlenecks[name]) != "V"
