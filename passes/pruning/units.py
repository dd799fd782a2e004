"""What can be removed at all: units of indices that go together, found for all dimensions of a graph at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from whet.ir.coupling import Coupling, Indices, Mask, Side, Strand
from whet.ir.graph import Graph, Operation, Value

Choice = Callable[[list[Side]], Side]


@dataclass(frozen=True, eq=False)
class Group:
    """Units that share dimensions, and so are chosen together: the channels of a stage, the heads of an attention.

    Attributes:
        strands: the dimensions that lose indices when a unit goes.
        labels: for each of them, the number of the unit that each index belongs to; -1: it stays.
        counts: [units, strands], how many indices of each a unit has.
    """

    strands: tuple[Strand, ...]
    labels: tuple[Indices, ...]
    counts: Indices

    @property
    def size(self) -> int:
        """How many units there are."""
        return int(self.counts.shape[0])

    def masks(self, units: Mask) -> dict[Strand, Mask]:
        """The indices that go with these units."""
        chosen = np.append(units, False)  # the label -1 reads the last
        pairs = zip(self.strands, self.labels, strict=True)
        return {strand: chosen[labels] for strand, labels in pairs if chosen[labels].any()}


def find_groups(graph: Graph, coupling: Coupling, wanted: Collection[Strand], kept: Collection[Strand]) -> list[Group]:
    """All groups of units that can go, in the order of the graph.

    Each unit is closed under the ties of the operations: once all of its indices are gone, nothing else has to go.
    No index is in two units. Attention heads are units where there are several of them, other channels go alone
    where the operations allow it, else in the smallest blocks that they allow.

    Args:
        wanted: dimensions of weights; a group that holds none of them is left out.
        kept: dimensions that may lose nothing.
    """
    search = _Search(frozenset(wanted), frozenset(kept))
    for root in _roots(graph, coupling, wanted):
        for choice in _CHOICES:
            if search.grow(root, choice):
                break
    return search.groups(coupling.strands)


def _roots(graph: Graph, coupling: Coupling, wanted: Collection[Strand]) -> list[Strand]:
    """Where to begin: heads, then the finest factor of a dimension, then all else; the largest first."""
    heads = _head_strands(graph.operations, coupling)
    parts = {side.other for strand in coupling.strands for side in strand.sides if _is_part(side)}

    def priority(strand: Strand) -> tuple[int, int]:
        rank = 0 if strand in heads else 1 if strand in parts else 2
        return rank, -strand.size

    near = _reached(wanted)
    return sorted((strand for strand in coupling.strands if strand in near), key=priority)


def _reached(wanted: Collection[Strand]) -> set[Strand]:
    """What ties lead to from these dimensions, as far as it can shrink."""
    found: set[Strand] = set()
    waiting = list(wanted)
    while waiting:
        strand = waiting.pop()
        if strand not in found and strand.pinned is None and strand.size > 1:
            found.add(strand)
            waiting += [side.other for side in strand.sides]
    return found


def _is_part(side: Side) -> bool:
    """Whether each index at the other end is a class of its own, and has few indices at this end."""
    apart = len(side.other_key) == side.count == len(np.unique(side.other_key))
    return apart and len(side.key) ** 0.5 <= side.count < len(side.key)


def _head_strands(operations: Iterable[Operation], coupling: Coupling) -> set[Strand]:
    """Batch dimensions of products of two computed matrices that begin with the heads: the last before the matrix."""
    found = set()
    for operation in operations:
        if operation.name in ("attention", "matmul") and operation.result.type.rank >= 3 and _computed(operation):
            query = operation.operand(0)
            found.add(coupling.strand((query.name, query.type.rank - 3)))
    return found


def _computed(operation: Operation) -> bool:
    values = operation.operands[:2]
    return all(value is not None and value.constant is None and value.type.rank >= 3 for value in values)


def _by_fineness(place: int, sides: list[Side]) -> Side:
    """The side with the smallest classes, of those that lead to dimensions that can shrink, or the next in order."""
    able = [side for side in sides if side.other.pinned is None and side.other.size > 1]
    ordered = sorted(able or sides, key=lambda side: -side.classes)
    return ordered[min(place, len(ordered) - 1)]


_CHOICES: Final[tuple[Choice, ...]] = tuple(partial(_by_fineness, place) for place in range(3))


class _Search:
    """Units found so far, as labels of indices; a new root adds units and never touches the old ones."""

    def __init__(self, wanted: frozenset[Strand], kept: frozenset[Strand]) -> None:
        self._wanted = wanted
        self._kept = kept
        self._labels: dict[Strand, Indices] = {}
        self._count = 0

    def grow(self, root: Strand, choose: Choice) -> bool:
        """Try a unit for each index of `root` that is in none; whether some of them can go."""
        if root in self._kept:
            return False
        free = self._labels.get(root, np.full(root.size, -1, dtype=np.int64)) < 0
        if not free.any():
            return True
        trial = _Trial(self._labels, self._count, self._kept, choose)
        trial.begin(root, free)
        trial.run()
        found = trial.result()
        if not any(strand in self._wanted for strand in found):
            return False
        self._labels.update(trial.labels)
        self._count = trial.end
        return True

    def groups(self, order: Iterable[Strand]) -> list[Group]:
        """Units that share strands, put together."""
        strands = [strand for strand in order if strand in self._labels and bool((self._labels[strand] >= 0).any())]
        owner = _UnionFind(self._count)
        for strand in strands:
            present = np.unique(self._labels[strand])
            owner.join(present[present >= 0])
        members: dict[int, list[Strand]] = {}
        for strand in strands:
            members.setdefault(owner.find(int(self._labels[strand].max())), []).append(strand)
        groups = (self._group(chosen) for chosen in members.values())
        return [group for group in groups if any(strand in self._wanted for strand in group.strands)]

    def _group(self, strands: list[Strand]) -> Group:
        units = np.unique(np.concatenate([self._labels[strand] for strand in strands]))
        units = units[units >= 0]
        numbers = np.full(self._count + 1, -1, dtype=np.int64)
        numbers[units] = np.arange(len(units))
        labels = [numbers[self._labels[strand]] for strand in strands]
        counts = [np.bincount(item[item >= 0], minlength=len(units)) for item in labels]
        return Group(tuple(strands), tuple(labels), np.stack(counts, axis=1))


class _UnionFind:
    """Disjoint sets of 0 ... count - 1."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, item: int) -> int:
        root = item
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[item] != root:
            self._parent[item], item = root, self._parent[item]
        return root

    def join(self, items: Iterable[int]) -> int:
        """Put these into one set; its name, the smallest member."""
        roots = {self.find(int(item)) for item in items}
        first = min(roots)
        for root in roots:
            self._parent[root] = first
        return first

    def names(self) -> Indices:
        """The name of every item's set."""
        return np.array([self.find(item) for item in range(len(self._parent))], dtype=np.int64)


class _Trial:
    """Labels that grow from one root until they are closed; units that would have to take what cannot go are dead.

    Old units (numbers below `first`) are closed already: a new one that meets one of them is dead.
    """

    def __init__(self, old: Mapping[Strand, Indices], first: int, kept: frozenset[Strand], choose: Choice) -> None:
        self._old = old
        self._kept = kept
        self._choose = choose
        self.first = self.end = first
        self.labels: dict[Strand, Indices] = {}
        self._sets = _UnionFind(0)
        self._names = np.zeros(0, dtype=np.int64)
        self._dead = np.zeros(0, dtype=np.bool_)
        self._waiting: dict[Strand, None] = {}

    def begin(self, root: Strand, free: Mask) -> None:
        count = int(free.sum())
        self.end = self.first + count
        labels = self._get(root).copy()
        labels[free] = np.arange(self.first, self.end)
        self._sets = _UnionFind(count)
        self._names = np.arange(count)
        self._dead = np.zeros(count, dtype=np.bool_)
        self.labels[root] = labels
        self._waiting[root] = None

    def run(self) -> None:
        """Propagate, then enlarge what no class justifies, until nothing changes or all units are dead."""
        while True:
            while self._waiting and not self._dead.all():
                strand = next(iter(self._waiting))
                del self._waiting[strand]
                self._propagate(strand)
            if self._dead.all() or not self._enlarge():
                self._bury_whole()
                return

    def result(self) -> list[Strand]:
        """The strands where units that can go have indices."""
        return [strand for strand, labels in self.labels.items() if bool((labels >= self.first).any())]

    def _get(self, strand: Strand) -> Indices:
        found = self.labels.get(strand)
        if found is None:
            found = self._old.get(strand)
        return np.full(strand.size, -1, dtype=np.int64) if found is None else found

    def _propagate(self, strand: Strand) -> None:
        """Give the units' labels to the other ends of the classes that are theirs alone."""
        for side in strand.sides:
            here = self._get(strand)
            incoming = side.uniform(here)[side.other_key]
            incoming[(incoming < self.first) | self._is_dead(incoming)] = -1
            if not (incoming >= 0).any():
                continue
            other = side.other
            if other.pinned is not None or other.size == 1 or other in self._kept:
                self._bury(np.unique(incoming[incoming >= 0]))
                continue
            there = self._get(other)
            self._merge(there, incoming)
            there = self._get(other)
            fresh = (there < 0) & (incoming >= 0)
            fresh &= ~self._is_dead(incoming)
            if fresh.any():
                self.labels[other] = np.where(fresh, self._named(incoming), there)
                self._waiting[other] = None

    def _merge(self, there: Indices, incoming: Indices) -> None:
        """Units that meet at an index become one; one that meets an old unit is dead."""
        met = (there >= 0) & (incoming >= 0) & (there != incoming)
        if not met.any():
            return
        pairs = np.unique(np.stack([there[met], incoming[met]], axis=1), axis=0)
        self._join([pair for pair in pairs.tolist() if min(pair) >= self.first])
        self._bury(np.array([max(pair) for pair in pairs.tolist() if min(pair) < self.first], dtype=np.int64))

    def _join(self, sets: Iterable[Collection[int]]) -> None:
        """Make one unit of the units of each set."""
        changed = False
        for items in sets:
            numbers = [item - self.first for item in items]
            dead = any(self._dead[self._sets.find(number)] for number in numbers)
            name = self._sets.join(numbers)
            self._dead[name] |= dead
            changed = True
        if changed:
            self._names = self._sets.names()
            self._dead = self._dead[self._names]
            self._rename(self._names)

    def _rename(self, names: Indices) -> None:
        for strand, labels in self.labels.items():
            new = labels.copy()
            mine = labels >= self.first
            new[mine] = names[labels[mine] - self.first] + self.first
            new[self._is_dead(new)] = -1
            if not np.array_equal(new, labels):
                self.labels[strand] = new
                self._waiting[strand] = None

    def _named(self, labels: Indices) -> Indices:
        return np.where(labels >= self.first, self._names[np.maximum(labels - self.first, 0)] + self.first, labels)

    def _bury(self, units: Indices) -> None:
        """These units cannot go: take their labels away."""
        units = np.unique(units)
        if not len(units):
            return
        self._dead[units - self.first] = True
        self._dead = self._dead[self._names]
        for strand, labels in self.labels.items():
            self.labels[strand] = np.where(self._is_dead(labels), -1, labels)

    def _is_dead(self, labels: Indices) -> Mask:
        mine = labels >= self.first
        found: Mask = mine & self._dead[np.where(mine, labels - self.first, 0)]
        return found

    def _enlarge(self) -> bool:
        """Units that an operation does not let go alone take a whole class with them; whether there were any."""
        for strand in list(self.labels):
            for sides in strand.demands:
                labels = self.labels[strand]
                alone = labels >= self.first
                for side in sides:
                    alone &= side.uniform(labels)[side.key] != labels
                if alone.any():
                    self._take_classes(strand, self._choose(sides), alone)
                    return True
        return False

    def _take_classes(self, strand: Strand, side: Side, alone: Mask) -> None:
        classes = np.unique(side.key[alone])
        labels = self.labels[strand].copy()
        sets: list[list[int]] = []
        doomed: list[int] = []
        for name in classes.tolist():
            inside = side.key == name
            units = np.unique(labels[inside])
            mine = units[units >= self.first].tolist()
            labels[inside & (labels < 0)] = mine[0]
            sets.append(mine)
            doomed += mine if bool(((units >= 0) & (units < self.first)).any()) else []
        self.labels[strand] = labels
        self._waiting[strand] = None
        self._join(sets)
        self._bury(np.array(doomed, dtype=np.int64))

    def _bury_whole(self) -> None:
        """A unit that is all of a dimension cannot go."""
        for labels in list(self.labels.values()):
            low, high = int(labels.min()), int(labels.max())
            if low == high >= self.first:
                self._bury(np.array([low], dtype=np.int64))


def strands_of(coupling: Coupling, values: Iterable[Value]) -> set[Strand]:
    """The strands of all dimensions of these values."""
    return {coupling.strand((value.name, dim)) for value in values for dim in range(value.type.rank)}
