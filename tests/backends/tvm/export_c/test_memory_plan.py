"""Buffers that are needed together never overlap, and the plan takes no more than it must."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from whet.backends.tvm.export_c.memory_plan import ALIGNMENT, Buffer, align, most_live, plan_memory


@st.composite
def buffers(draw: st.DrawFn) -> list[Buffer]:
    steps = draw(st.integers(1, 12))
    found = []
    for _ in range(draw(st.integers(0, 16))):
        first = draw(st.integers(0, steps))
        found.append(Buffer(draw(st.integers(0, 2000)), first, draw(st.integers(first, steps))))
    return found


@settings(max_examples=300, deadline=None)
@given(buffers())
def test_no_two_live_buffers_overlap(items: list[Buffer]) -> None:
    plan = plan_memory(items)
    for index, (one, start) in enumerate(zip(items, plan.offsets, strict=True)):
        assert start % ALIGNMENT == 0
        assert start + one.size <= plan.peak
        for other, begin in zip(items[:index], plan.offsets[:index], strict=True):
            apart = start + one.size <= begin or begin + other.size <= start
            assert apart or not one.meets(other) or not one.size or not other.size


@settings(max_examples=300, deadline=None)
@given(buffers())
def test_the_peak_lies_between_what_is_live_and_everything(items: list[Buffer]) -> None:
    plan = plan_memory(items)
    assert most_live(items) <= plan.peak <= sum(align(item.size) for item in items)


def test_memory_is_used_again() -> None:
    chain = [Buffer(640, step, step + 1) for step in range(9)]
    assert plan_memory(chain).peak == most_live(chain) == 1280


def test_a_small_buffer_goes_into_the_smallest_gap() -> None:
    items = [
        Buffer(1024, 0, 0),  # leaves a gap of 1024
        Buffer(512, 0, 2),
        Buffer(192, 0, 0),  # and one of 192
        Buffer(128, 0, 2),
        Buffer(64, 1, 2),
    ]
    plan = plan_memory(items)
    assert plan.offsets == (0, 1024, 1536, 1728, 1536)
    assert plan.peak == most_live(items) == 1856
