"""Which candidates are proposed, and in which order."""

from __future__ import annotations

from whet.backends.tvm.kernels.decisions import DEFAULT, DIRECT, OPPOSITE, ORDERS, UNROLLS, Decision
from whet.backends.tvm.kernels.tiles import Tile
from whet.backends.tvm.tuning.search import Search, nearest
from whet.backends.tvm.tuning.similar import alike

TILES = [Tile((rows,), block) for block in (16, 32) for rows in (1, 2, 4, 8)]


def measure_all(search: Search, seconds: dict[Decision, float]) -> list[Decision]:
    order = []
    while (candidate := search.propose()) is not None:
        order.append(candidate)
        search.tell(candidate, seconds.get(candidate, 1.0))
    return order


def test_every_candidate_is_proposed_once_and_the_default_first() -> None:
    order = measure_all(Search({DIRECT: TILES}), {})
    assert order[0] == DEFAULT
    named = {(item.tile or TILES[0], item.order, item.unroll) for item in order}
    assert len(named) == len(order) == len(TILES) * len(ORDERS) * len(UNROLLS)


def test_what_was_best_for_a_like_workload_comes_second_as_the_nearest_tile() -> None:
    search = Search({DIRECT: TILES}, [Decision(Tile((7,), 32), OPPOSITE, 2)])
    search.tell(DEFAULT, 1.0)
    assert search.propose() == Decision(Tile((8,), 32), OPPOSITE, 2)


def test_neighbours_of_the_best_come_before_the_rest() -> None:
    tiles = [Tile((rows,), block) for block in (16, 32, 48, 64) for rows in range(1, 13)]
    best = Decision(tiles[3])
    search = Search({DIRECT: tiles})
    order = measure_all(search, {best: 0.1})
    assert search.best == best and search.best_seconds == 0.1
    after = order[12 : 12 + len(ORDERS) * len(UNROLLS) - 1]
    assert all(item.tile == best.tile for item in after)


def test_algorithms_take_turns_and_each_has_its_own_tiles() -> None:
    order = measure_all(Search({DIRECT: TILES, "fast": TILES[:2]}), {})
    assert [(item.algorithm, item.tile) for item in order[1:4]] == [
        ("fast", TILES[0]),
        (DIRECT, TILES[1]),
        ("fast", TILES[1]),
    ]
    assert len(order) == (len(TILES) + 2) * len(ORDERS) * len(UNROLLS)


def test_failures_and_ties_count_as_stale() -> None:
    search = Search({DIRECT: TILES})
    search.tell(DEFAULT, 1.0)
    search.tell(Decision(TILES[1]), None)
    search.tell(Decision(TILES[2]), 0.999)
    assert search.stale == 2
    search.tell(Decision(TILES[3]), 0.5)
    assert search.stale == 0 and search.best == Decision(TILES[3])
    assert search.promise > 0.4


def test_nearest_takes_tiles_of_the_same_rank_alone() -> None:
    assert nearest(TILES, Tile((1, 4), 16)) is None
    assert nearest(TILES, Tile((3,), 30)) == Tile((4,), 32)


def test_workloads_are_alike_that_differ_in_extents_alone() -> None:
    text = "%1: f32[1, 56, 56, 64] = conv(%0: f32[1, 56, 56, 64]) {stride=(1, 1)}"
    near, far, other = text.replace("56", "28"), text.replace("56", "7"), text.replace("conv", "linear")
    decisions = [Decision(tile) for tile in TILES[:3]]
    found = alike(text, zip((far, near, other), decisions, strict=True))
    assert found == [decisions[1], decisions[0]]
