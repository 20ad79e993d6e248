"""Work is cut so that four threads get equal shares, and single threads hardly more tiles."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.tvm.kernels.shares import busiest, equal_parts, tiles


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 6), st.lists(st.integers(1, 16), min_size=1, max_size=12))
def test_cuts_are_equal_add_few_tiles_and_never_leave_a_thread_with_more(
    width: int, tile: int, costs: list[int]
) -> None:
    parts = equal_parts(width, tile, costs)
    assert width % parts == 0
    assert -(-(width // parts) // tile) * parts <= 1.02 * -(-width // tile)
    assert busiest(costs * parts) <= busiest(costs)


@pytest.mark.parametrize(("width", "costs"), [(112 * 112, [16]), (56 * 56, [16, 8]), (28 * 28, [16, 16])])
def test_images_of_few_channels_are_shared_by_pixels(width: int, costs: list[int]) -> None:
    assert busiest(costs) > 0.3
    assert busiest(costs * equal_parts(width, 6, costs)) <= 0.27


def test_many_channels_need_no_cut() -> None:
    assert equal_parts(49, 6, [16] * 80) == 1


@given(st.integers(1, 300), st.integers(1, 6), st.sampled_from([1, 2]))
def test_tiles_cover_an_axis_once_and_are_of_nearly_one_size(extent: int, most: int, together: int) -> None:
    runs = tiles(extent, most * together, together)
    covered = 0
    for first, count, size in runs:
        assert first == covered and count > 0 and 0 < size <= most * together
        covered += count * size
    assert covered == extent
    assert sum(count for _, count, _ in runs) == -(-extent // (most * together))
    sizes = [-(-size // together) for _, _, size in runs]  # the last tile may lack what makes its operand whole
    assert max(sizes) - min(sizes) <= 1
    assert all(size % together == 0 for _, _, size in runs[:-1])
