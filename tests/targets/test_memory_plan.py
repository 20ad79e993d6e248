"""The memory plan: no two buffers that live together overlap, and the arena stays near the lower bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from graphopt.targets.tvm.memory_plan import Lifetime, lower_bound, plan

LIFETIMES = st.lists(
    st.builds(
        lambda size, first, length: Lifetime(size, first, first + length),
        st.integers(0, 5000),
        st.integers(0, 30),
        st.integers(0, 8),
    ),
    max_size=40,
)


@given(LIFETIMES, st.sampled_from([1, 16, 64]))
def test_buffers_that_live_together_do_not_overlap(lifetimes: list[Lifetime], alignment: int) -> None:
    offsets, arena = plan(lifetimes, alignment)
    for i, a in enumerate(lifetimes):
        assert offsets[i] % alignment == 0
        assert offsets[i] + a.bytes <= arena
        for j, b in enumerate(lifetimes[:i]):
            if a.first <= b.last and b.first <= a.last and a.bytes and b.bytes:
                assert offsets[i] + a.bytes <= offsets[j] or offsets[j] + b.bytes <= offsets[i]


@given(LIFETIMES)
def test_no_plan_is_smaller_than_what_lives_at_once(lifetimes: list[Lifetime]) -> None:
    assert plan(lifetimes, 1)[1] >= lower_bound(lifetimes)


def test_a_chain_needs_only_its_two_largest_neighbours() -> None:
    chain = [Lifetime(640, i, i + 1) for i in range(10)]
    assert plan(chain, 64) == ([0, 640] * 5, 1280)


def test_what_the_largest_first_places_badly_is_moved() -> None:
    """Three LSTMs between products: largest first leaves a gap that no later buffer fits."""
    sizes = [(1536, 0, 1), (32768, 1, 2), (8192, 2, 3), (256, 2, 2), (256, 2, 2), (8192, 3, 4), (32768, 4, 5)]
    sizes += [(8192, 5, 6), (256, 5, 5), (256, 5, 5), (8192, 6, 7), (32768, 7, 8), (8192, 8, 9), (256, 8, 8)]
    lifetimes = [Lifetime(*row) for row in (*sizes, (256, 8, 8), (8192, 9, 10), (256, 10, 11))]
    offsets, arena = plan(lifetimes, 64)
    assert arena == lower_bound(lifetimes) == 41472
    assert (offsets, arena) == plan(lifetimes, 64)  # the same each time


def test_nothing_needs_no_arena() -> None:
    assert plan([], 64) == ([], 0)
    assert lower_bound([]) == 0
