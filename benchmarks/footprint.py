"""What a device pays to run a bundle: start-up time and peak memory, without torch and without the compiler.

    python -m benchmarks.footprint [MODEL.whet] [--json FILE]

Without a bundle, the trained MobileNetV2 is compiled for this machine first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

_CHILD = """
import json, sys, time
start = time.perf_counter()
import numpy as np
import whet
module = whet.load(sys.argv[1], threads=2)
loaded = time.perf_counter() - start
dtypes = {"f32": "float32", "i64": "int64", "i32": "int32", "u8": "uint8", "i8": "int8", "bool": "bool"}
inputs = [np.ones([d if isinstance(d, int) else 1 for d in item.shape], dtypes[item.dtype]) for item in module.inputs]
module(*inputs)
first = time.perf_counter() - start
for _ in range(20):
    module(*inputs)
status = open("/proc/self/status").read().split()
print(json.dumps({
    "load_seconds": loaded,
    "first_result_seconds": first,
    "peak_megabytes": int(status[status.index("VmHWM:") + 1]) / 1024,
    "modules": sorted({"torch", "tvm"} & set(sys.modules)),
}))
"""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--json", type=Path, help="also write the result there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whet-footprint-") as folder:
        bundle = options.bundle or _mobilenet(Path(folder) / "mobilenet_v2.whet")
        finished = subprocess.run(
            [sys.executable, "-c", _CHILD, str(bundle)], stdout=subprocess.PIPE, text=True, check=True
        )
        result = json.loads(finished.stdout) | {"bundle_megabytes": bundle.stat().st_size / 1e6}
    table = Table("bundle", "import and load", "first result", "peak memory", "of torch and tvm, imported")
    table.add_row(
        f"{result['bundle_megabytes']:.1f} MB",
        f"{result['load_seconds']:.2f} s",
        f"{result['first_result_seconds']:.2f} s",
        f"{result['peak_megabytes']:.0f} MB",
        ", ".join(result["modules"]) or "neither",
    )
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _mobilenet(path: Path) -> Path:
    import whet
    from benchmarks.models.trained import load_mobilenet, picture_input

    whet.optimize(load_mobilenet(), "x86", example_inputs=picture_input()).save(path)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
