"""Which indices of dimensions go together: the closure of the ties of operations, on whole arrays of indices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from whet.errors import PassError
from whet.ir.definition import IDENTITY, IndexMap, Tie
from whet.ir.dimensions import Dim
from whet.ir.graph import Operation

Dimension = tuple[str, int]
"""(value name, dimension)."""

Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(eq=False)
class Strand:
    """Dimensions whose indices are tied one to one: index i of one goes with index i of all others.

    Attributes:
        size: how many indices each of them has; 0 where it is symbolic.
        members: the dimensions.
        pinned: a member of which nothing may go, and why; None: there is none.
        sides: the ends here of all other ties.
        demands: for each operation and member that has no one-to-one tie, its sides here; an index may go only as
            part of a class of one of them.
    """

    size: int
    members: list[Dimension] = field(default_factory=list)
    pinned: tuple[Dimension, str] | None = None
    sides: list[Side] = field(default_factory=list)
    demands: list[list[Side]] = field(default_factory=list)


@dataclass(eq=False)
class Side:
    """One end of a tie, seen from its strand.

    Attributes:
        other: the strand at the other end.
        key: the class of each index here; -1: no class, the index is free.
        other_key: the class of each index of the other strand.
        count: number of classes.
    """

    other: Strand
    key: Indices
    other_key: Indices
    count: int
    _order: Indices = field(init=False, repr=False)
    _starts: Indices = field(init=False, repr=False)
    _present: Indices = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._order = np.argsort(self.key, kind="stable")
        self._present, self._starts = np.unique(self.key[self._order], return_index=True)

    @property
    def classes(self) -> int:
        """How many classes have an index here."""
        return len(self._present)

    def complete(self, mask: Mask) -> Mask:
        """Whether each class has an index here and all of its indices here are in `mask`."""
        found = np.zeros(self.count, dtype=np.bool_)
        found[self._present] = np.logical_and.reduceat(mask[self._order], self._starts)
        return found

    def uniform(self, labels: Indices) -> Indices:
        """The label that all indices of a class here have in common; -1 where they have none or differ."""
        found = np.full(self.count, -1, dtype=np.int64)
        ordered = labels[self._order]
        low, high = np.minimum.reduceat(ordered, self._starts), np.maximum.reduceat(ordered, self._starts)
        found[self._present] = np.where(low == high, low, -1)
        return found


class Coupling:
    """The strands of a graph and the ties between them.

    Args:
        ties: what `whet.ir.views.tie_graph` gave.
    """

    def __init__(self, ties: nx.MultiGraph) -> None:
        self._ties = ties
        self._strands: dict[Dimension, Strand] = {}
        edges = [_edge(ties, *edge) for edge in ties.edges(data=True)]
        self._join(edge for edge in edges if edge.one_to_one)
        released = {item for edge in edges if edge.one_to_one for item in edge.places}
        for place, sides in self._bind([edge for edge in edges if not edge.one_to_one]).items():
            if place not in released:
                self._strands[place[1]].demands.append(sides)

    @property
    def strands(self) -> list[Strand]:
        """Every strand once, in the order of its first member in the graph."""
        return list(dict.fromkeys(self._strands.values()))

    def strand(self, dimension: Dimension) -> Strand:
        """The strand that a dimension belongs to. Raises PassError for one that does not exist."""
        if dimension not in self._strands:
            raise PassError(f"there is no dimension {dimension[1]} of %{dimension[0]}")
        return self._strands[dimension]

    def _join(self, edges: Iterable[_Edge]) -> None:
        joined: nx.Graph = nx.Graph()
        joined.add_nodes_from(self._ties)
        joined.add_edges_from((edge.left, edge.right) for edge in edges)
        order = {node: place for place, node in enumerate(self._ties)}
        for component in nx.connected_components(joined):
            members = sorted(component, key=order.__getitem__)
            self._strands.update(dict.fromkeys(members, self._strand_of(members)))

    def _strand_of(self, members: list[Dimension]) -> Strand:
        size = self._ties.nodes[members[0]]["size"]
        reasons = ((node, self._ties.nodes[node]["pinned"]) for node in members)
        pinned = next(((node, reason) for node, reason in reasons if reason is not None), None)
        if isinstance(size, int):
            return Strand(size, members, pinned)
        return Strand(0, members, pinned or (members[0], f"its size {size} is symbolic"))

    def _bind(self, edges: Iterable[_Edge]) -> dict[tuple[Operation, Dimension], list[Side]]:
        """Sides for ties that are not one to one, by the operation and the dimension that they are at."""
        found: defaultdict[tuple[Operation, Dimension], list[Side]] = defaultdict(list)
        for edge in edges:
            left, right = self._strands[edge.left], self._strands[edge.right]
            if not left.size or not right.size:
                continue
            left_key, right_key, count = _classes(edge.tie, left.size, right.size)
            sides = Side(right, left_key, right_key, count), Side(left, right_key, left_key, count)
            for strand, place, side in zip((left, right), edge.places, sides, strict=True):
                strand.sides.append(side)
                found[place].append(side)
        return found

    def close(self, removed: Mapping[Strand, Mask]) -> dict[Strand, Mask]:
        """All indices that must go once those of `removed` go.

        Raises PassError where a pinned or whole dimension would have to go, naming it and the reason.
        """
        masks = {strand: mask.copy() for strand, mask in removed.items()}
        for strand, mask in masks.items():
            _require_removable(strand, mask)
        waiting = list(masks)
        while waiting:
            while waiting:
                waiting += _force(masks, waiting.pop())
            waiting = _enlarge(masks)
        return masks


@dataclass(frozen=True)
class _Edge:
    """One edge of the tie graph."""

    operation: Operation
    tie: Tie
    left: Dimension
    right: Dimension
    one_to_one: bool

    @property
    def places(self) -> tuple[tuple[Operation, Dimension], tuple[Operation, Dimension]]:
        return (self.operation, self.left), (self.operation, self.right)


def _edge(ties: nx.MultiGraph, one: Dimension, other: Dimension, data: Mapping[str, Any]) -> _Edge:
    left, right = (one, other) if one == data["left"] else (other, one)
    sizes = ties.nodes[left]["size"], ties.nodes[right]["size"]
    return _Edge(data["operation"], data["tie"], left, right, _one_to_one(data["tie"], *sizes))


def _one_to_one(tie: Tie, left: Dim, right: Dim) -> bool:
    """Whether index i of one side is tied to index i of the other, for every i of both."""
    if not isinstance(left, int) or not isinstance(right, int):
        return tie.left_map == tie.right_map == IDENTITY
    if left != right:
        return False
    keys = _map(tie.left_map, left)
    return bool(np.array_equal(keys, _map(tie.right_map, right))) and len(np.unique(keys)) == left


def _map(index_map: IndexMap, size: int) -> Indices:
    moved = (np.arange(size, dtype=np.int64) + index_map.offset) // index_map.divide
    return moved if index_map.modulo is None else moved % index_map.modulo


def _classes(tie: Tie, left: int, right: int) -> tuple[Indices, Indices, int]:
    """The class of each index on both sides, numbered from 0, and their number."""
    both = np.concatenate([_map(tie.left_map, left), _map(tie.right_map, right)])
    names, numbers = np.unique(both, return_inverse=True)
    return numbers[:left], numbers[left:], len(names)


def _require_removable(strand: Strand, mask: Mask) -> None:
    """Guard: these indices may go. Raises PassError."""
    if not mask.any():
        return
    if strand.pinned is not None:
        (name, dim), reason = strand.pinned
        raise PassError(f"dimension {dim} of %{name} cannot shrink: {reason}")
    if mask.all():
        name, dim = strand.members[0]
        raise PassError(f"nothing would be left of dimension {dim} of %{name}, of size {strand.size}")


def _force(masks: dict[Strand, Mask], strand: Strand) -> list[Strand]:
    """Remove the other ends of the classes that are complete here; the strands that lose by that."""
    changed = []
    for side in strand.sides:
        forced = side.complete(masks[strand])[side.other_key]
        changed += _add(masks, side.other, forced)
    return changed


def _enlarge(masks: dict[Strand, Mask]) -> list[Strand]:
    """Remove the first class of each index of one strand that an operation does not let go alone."""
    for strand, mask in list(masks.items()):
        for sides in strand.demands:
            alone = mask & ~np.logical_or.reduce([side.complete(mask)[side.key] for side in sides])
            if alone.any():
                wanted = np.isin(sides[0].key, sides[0].key[alone])
                return _add(masks, strand, wanted)
    return []


def _add(masks: dict[Strand, Mask], strand: Strand, more: Mask) -> list[Strand]:
    old = masks.get(strand)
    new = more if old is None else old | more
    if not more.any() or (old is not None and bool((new == old).all())):
        return []
    _require_removable(strand, new)
    masks[strand] = new
    return [strand]


def coupled_indices(ties: nx.MultiGraph, seed: Mapping[Dimension, Iterable[int]]) -> dict[Dimension, frozenset[int]]:
    """Everything that must be removed together with `seed`, after the rule of `definition.Tie`.

    Args:
        ties: what `whet.ir.views.tie_graph` gave.
        seed: indices to remove, by dimension.

    An index that may not go alone takes the first class of its operation's ties with it that it is in:
    operations name whole blocks (heads, groups of channels) before strided ones. The seed is part of the
    result.

    Raises PassError where a pinned, symbolic or whole dimension would have to go, naming it and the reason.
    """
    coupling = Coupling(ties)
    masks: dict[Strand, Mask] = {}
    for node, indices in seed.items():
        strand = coupling.strand(node)
        chosen = np.fromiter(indices, dtype=np.int64)
        wrong = [int(index) for index in chosen if not 0 <= index < strand.size]
        if wrong and strand.pinned is None:
            raise PassError(
                f"dimension {node[1]} of %{node[0]} has size {strand.size}, there is no index {wrong[0]} to remove"
            )
        mask = masks.setdefault(strand, np.zeros(max(strand.size, 1), dtype=np.bool_))
        mask[chosen if not wrong else 0] = True
    return dimensions_of(coupling.close(masks))


def dimensions_of(masks: Mapping[Strand, Mask]) -> dict[Dimension, frozenset[int]]:
    """The indices that each dimension loses; dimensions that lose none are left out."""
    found: dict[Dimension, frozenset[int]] = {}
    for strand, mask in masks.items():
        indices = frozenset(np.flatnonzero(mask).tolist())
        if indices:
            found.update(dict.fromkeys(strand.members, indices))
    return found
