"""What a graph goes through before it is lowered: folding, layout, and operations that have no kernel of their own."""

from __future__ import annotations

from whet.backends.tvm.split_dequantize import SplitDequantize
from whet.ir.graph import Graph
from whet.ir.ops.contraction import CHANNELS_LAST
from whet.ir.target import Target
from whet.passes.base import Context
from whet.passes.canonicalize.canonicalize import Canonicalize
from whet.passes.fold_batch_norm import FoldBatchNorm
from whet.passes.layout import AssignLayout
from whet.passes.legalize import DecomposeAttention
from whet.passes.manager import PassManager
from whet.passes.materialize import MaterializeWeights
from whet.passes.quantization.expand_fake import ExpandFakeQuantize
from whet.passes.recurrent_projection import HoistRecurrentProjections

PREPARATION = (
    ExpandFakeQuantize(),
    MaterializeWeights(),
    FoldBatchNorm(),
    DecomposeAttention(),
    HoistRecurrentProjections(),
    Canonicalize(),
    AssignLayout(CHANNELS_LAST),
    Canonicalize(),
    SplitDequantize(),
)


def prepare(graph: Graph, target: Target) -> Graph:
    """An equivalent graph in the form that the lowerings want; results change by rounding at most."""
    return PassManager(PREPARATION).run(graph, Context(target=target)).graph
