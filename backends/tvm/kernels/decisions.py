"""What a kernel leaves open, and a target that comes with the decisions taken for one kernel.

Kernels are planned for a `CpuTarget` and take the choice that the model of the machine ranks first. A tuner plans the
same kernel for a `Decided` target instead: it sees which choices there were, and says which one to take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.kernels.tiles import Tile

MODELLED = "modelled"
"""The loop over tiles outside that the bytes to move speak for (`whet.backends.tvm.schedule.tiled.rows_outside`)."""
OPPOSITE = "opposite"
"""The other one."""
ORDERS = (MODELLED, OPPOSITE)
DIRECT = "direct"
"""Sums of products as the operation is defined; other algorithms are named where they are implemented."""
UNROLLS = (1, 2, 4)
"""Steps of the innermost reduction loop that are written out."""


@dataclass(frozen=True)
class Decision:
    """How one kernel is tiled and scheduled.

    Attributes:
        tile: its register tile; None: the one that the model of the machine ranks first.
        order: which loop over tiles is outside.
        unroll: steps of the innermost reduction loop that are written out.
        algorithm: that it computes by.
    """

    tile: Tile | None = None
    order: str = MODELLED
    unroll: int = 1
    algorithm: str = DIRECT

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        """Raises KeyError, TypeError and ValueError for what is no decision."""
        tile = data["tile"]
        chosen = None if tile is None else Tile(tuple(int(row) for row in tile["rows"]), int(tile["block"]))
        if data["order"] not in ORDERS or int(data["unroll"]) not in UNROLLS:
            raise ValueError(f"{data} is no decision")
        return cls(chosen, data["order"], int(data["unroll"]), str(data["algorithm"]))

    def __str__(self) -> str:
        tile = "default" if self.tile is None else f"{'x'.join(map(str, self.tile.rows))}x{self.tile.block}"
        return f"{self.algorithm} {tile}, {self.order} order, unrolled {self.unroll}"


DEFAULT = Decision()


@dataclass
class Decided:
    """A CPU target for one kernel, with the decision for it.

    `tiles` are the register tiles that the kernel could have had, the best first by the model, and `algorithms` what it
    could have been computed by: empty for a kernel without a choice.
    """

    target: CpuTarget
    decision: Decision = DEFAULT
    tiles: list[Tile] = field(default_factory=list)
    algorithms: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def choose(self, ranked: Sequence[Tile]) -> Tile:
        """The decision's tile where it is one of `ranked`, else the first of them."""
        self.tiles = list(ranked)
        return self.decision.tile if self.decision.tile in self.tiles else self.tiles[0]

    def choose_algorithm(self, offered: Sequence[str]) -> str:
        """The decision's algorithm where it is one of `offered`, else the first of them."""
        self.algorithms = list(offered)
        return self.decision.algorithm if self.decision.algorithm in offered else offered[0]


def chosen_algorithm(target: CpuTarget, offered: Sequence[str]) -> str:
    """The algorithm that a target with decisions chooses, else the first of those `offered`."""
    return target.choose_algorithm(offered) if isinstance(target, Decided) else offered[0]


def decision_for(target: CpuTarget) -> Decision:
    """The decision that comes with a target."""
    return target.decision if isinstance(target, Decided) else DEFAULT
