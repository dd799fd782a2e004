"""The whole pipeline beside OpenVINO: ResNet-20 pruned and quantized in one graph against the same network quantized.

Whet removes channels down to half of the FLOPs, distills the network from the original, and quantizes it; OpenVINO's
NNCF and Whet quantize the original. Accuracy is that of the compiled modules on the whole test set; latencies are
medians of rounds, each engine in a process of its own, in turn, on the same cores.

    python -m benchmarks.pipeline --threads 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.engines.base import INPUTS_FILE, Engine, Inputs, Job
from benchmarks.engines.measuring import first_output, measure
from benchmarks.engines.openvino_engines import OpenVino, OpenVinoInt8
from benchmarks.engines.whet_engines import WhetInt8
from benchmarks.environment import environment, wide_console
from benchmarks.processes import cores_for, run_child

if TYPE_CHECKING:
    from benchmarks.models.case import ModelCase
    from whet.backends.base import CompiledModule

_CALIBRATION = 300
_SECONDS = 1.0
PEER, OWN = "OpenVINO int8", "Whet pruned, int8"


class PrunedInt8(WhetInt8):
    """Whet's network of half the FLOPs with static 8-bit integers."""

    def compile(self, case: ModelCase) -> CompiledModule:
        """The saved pruned graph, quantized and compiled for one picture."""
        import whet
        from benchmarks.cases import saved
        from benchmarks.cases.residual import HALF
        from benchmarks.models.calibration import calibration_inputs
        from whet.passes import BindDimensions

        return whet.optimize(
            saved.read(saved.place(HALF, committed=True)),
            "x86",
            passes=[BindDimensions(default=1), *self.passes()],
            calibration=calibration_inputs(case, _CALIBRATION),
            tuning=False,
            progress=False,
        )


ENGINES: Mapping[str, type[Engine]] = {
    "OpenVINO f32": OpenVino,
    PEER: OpenVinoInt8,
    "Whet int8": WhetInt8,
    OWN: PrunedInt8,
}


@dataclass(frozen=True)
class Row:
    """What one engine gave.

    Attributes:
        engine: its name.
        accuracy: right answers in percent of the test set.
        milliseconds: of one picture.
        ratio: OpenVINO's int8 latency over this one's.
    """

    engine: str
    accuracy: float
    milliseconds: float
    ratio: float


def trained_case() -> ModelCase:
    """ResNet-20 as it was trained, with real pictures to calibrate on."""
    from benchmarks.baselines import load_baseline
    from benchmarks.cases.classification import cifar10
    from benchmarks.models.case import ModelCase

    return ModelCase(
        "trained/resnet20",
        "trained",
        lambda: load_baseline("resnet20"),
        lambda: (cifar10().test.images[:1],),
        classifier=True,
        calibration=lambda count: [(picture[None],) for picture in cifar10().calibration.images[:count]],
    )


def accuracy(engine: Engine, job: Job) -> float:
    """Right answers on the test set, in percent; the pictures pass through the job's input, one by one."""
    from benchmarks.cases.classification import cifar10

    run, (x,) = engine.load(job), job.inputs.args
    test = cifar10().test
    right = 0
    for picture, label in zip(test.images.numpy(), test.labels.tolist(), strict=True):
        x[...] = picture
        right += int(first_output(run()).argmax()) == label
    return 100.0 * right / len(test.labels)


def rows(threads: int, rounds: int) -> list[Row]:
    """Prepare all engines, evaluate them, measure them in turn."""
    case, cores = trained_case(), cores_for(threads)
    with tempfile.TemporaryDirectory(prefix="whet-pipeline-") as top:
        folders = {name: Path(top) / str(index) for index, name in enumerate(ENGINES)}
        for name in track(ENGINES, "prepare", console=Console(stderr=True)):
            folders[name].mkdir()
            Inputs.of(case).save(folders[name] / INPUTS_FILE)
            ENGINES[name]().prepare(Job(lambda: case, folders[name], threads))

        def child(action: str, name: str) -> Any:
            return run_child(
                "benchmarks.pipeline", ["--threads", str(threads), "--child", action, name, str(folders[name])], cores
            )

        right = {name: child("accuracy", name) for name in track(ENGINES, "evaluate", console=Console(stderr=True))}
        times: dict[str, list[float]] = {name: [] for name in ENGINES}
        for name in track([*ENGINES] * rounds, "measure", console=Console(stderr=True)):
            times[name].append(child("measure", name)["milliseconds"])
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [Row(name, right[name], medians[name], medians[PEER] / medians[name]) for name in ENGINES]


def _child(action: str, name: str, folder: Path, threads: int) -> Any:
    engine, job = ENGINES[name](), Job(trained_case, folder, threads)
    return accuracy(engine, job) if action == "accuracy" else measure(engine, job, _SECONDS)


def table(found: list[Row]) -> Table:
    """One line an engine; the ratio is that of latencies to OpenVINO's int8, above 1 is faster."""
    result = Table("engine", "accuracy %", "ms", "ratio", title="ResNet-20, CIFAR-10, one picture")
    for row in found:
        result.add_row(row.engine, f"{row.accuracy:.2f}", f"{row.milliseconds:.3f}", f"{row.ratio:.2f}")
    return result


def main() -> None:
    """Command line; a child prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--child", nargs=3, metavar=("ACTION", "ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        action, name, folder = options.child
        print(json.dumps(_child(action, name, Path(folder), options.threads)))
        return
    found = rows(options.threads, options.rounds)
    wide_console().print(table(found))
    if options.json is not None:
        record = {"environment": environment(), "rows": [asdict(row) for row in found]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
