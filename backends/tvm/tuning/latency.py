"""How long each module of a graph takes on the device: kernels measured one by one, as they are compiled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from whet.backends.tuning import Tuning
from whet.backends.tvm.emit import Schedule, kernel_regions
from whet.backends.tvm.prepare import prepare
from whet.backends.tvm.tuning.database import Database, workload_key
from whet.backends.tvm.tuning.runner import opened
from whet.backends.tvm.tuning.task import Task
from whet.backends.tvm.workload import workload_text
from whet.errors import TuningError
from whet.ir.graph import Graph
from whet.ir.target import Target
from whet.passes.base import Context, Progress
from whet.passes.bind_dimensions import BindDimensions


def module_latencies(
    graph: Graph, target: Target, schedule: Schedule, tuning: Tuning, progress: Progress
) -> Mapping[str, float]:
    """Seconds of a call by module path, with the kernels that tuning has chosen; symbolic dimensions are 1, or their
    minimum.

    Raises TuningError for a kernel that cannot be measured.
    """
    if graph.dimensions:
        sizes = {name: max(limits.minimum, 1) for name, limits in graph.dimensions.items()}
        graph = BindDimensions(sizes).run(graph, Context()).graph
    database = Database(tuning.folder, target)
    regions = [region for region in kernel_regions(prepare(graph, target), target) if not region.is_view]
    known: dict[str, float] = {}
    seconds: defaultdict[str, float] = defaultdict(float)
    with opened(tuning.runner, target, tuning.trial_limit) as runner:
        for index, region in enumerate(regions):
            progress("measuring kernels", index, len(regions))
            text = workload_text(region)
            if text not in known:
                task = Task(text, region, 1, {}, 0)
                kernel = task.kernel(target, schedule, database.decide(text))
                answer = runner.measure(kernel, workload_key(text), reference=True)
                if "seconds" not in answer:
                    raise TuningError(f"{task.name} at {region.operations[0].location}: {answer['failure']}")
                known[text] = float(answer["seconds"])
            anchor = region.anchor or region.operations[0]
            seconds[anchor.location.module] += known[text]
    return seconds
