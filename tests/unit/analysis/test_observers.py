"""Observers: histograms that do not depend on how the values arrive, and the ranges that are read from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.analysis.observers import MAX_BINS, Histogram, Observer, channel_ends, range_of, squared_error

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = hnp.arrays(np.float32, st.integers(1, 40), elements=FLOATS)


def observed(*pieces: np.ndarray[Any, Any]) -> Histogram:
    histogram = Histogram()
    for piece in pieces:
        histogram.update(piece)
    return histogram


def exact_error(values: np.ndarray[Any, Any], low: float, high: float) -> float:
    scale = (high - low) / 255
    begin = np.rint(low / scale)
    return float(np.square(values - np.clip(np.rint(values / scale), begin, begin + 255) * scale).sum())


@given(st.lists(VALUES, min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_counts_do_not_depend_on_order_or_grouping(pieces: list[np.ndarray[Any, Any]]) -> None:
    one, other = observed(*pieces), observed(np.concatenate(pieces[::-1]))
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(one.centres, other.centres)
    assert (one.low, one.high) == (other.low, other.high)


@given(st.lists(VALUES, min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_every_value_is_in_the_bin_around_it_and_the_bins_are_few(pieces: list[np.ndarray[Any, Any]]) -> None:
    histogram = observed(*pieces)
    values = np.sort(np.concatenate(pieces).astype(np.float64))
    assert histogram.total == len(values) and len(histogram.counts) <= MAX_BINS
    centres = np.repeat(histogram.centres, histogram.counts)
    width = float(np.spacing(1.0)) if len(histogram.centres) == 1 else float(np.diff(histogram.centres)[0])
    spread = max(abs(values[0]), abs(values[-1]))
    assert np.all(np.abs(centres - values) <= max(width / 2, spread * 2.0**-51) * (1 + 1e-9))


def test_half_of_the_bins_at_least_lie_within_the_range() -> None:
    values = np.random.default_rng(0).uniform(-3, 5, 100_000).astype(np.float32)
    assert MAX_BINS / 2 - 1 <= len(observed(values).counts) <= MAX_BINS


def test_numbers_that_are_not_finite_are_counted_apart() -> None:
    histogram = observed(np.array([1, np.nan, -np.inf, 2], np.float32), np.array([np.inf], np.float32))
    assert (histogram.not_finite, histogram.total, histogram.low, histogram.high) == (3, 2, 1.0, 2.0)


def test_empty_tensors_leave_the_histogram_empty_and_without_a_range() -> None:
    histogram = observed(np.zeros((0, 3), np.float32))
    assert histogram.total == 0
    with pytest.raises(ValueError, match="empty"):
        range_of(histogram, Observer.MIN_MAX)


@pytest.mark.parametrize("observer", Observer)
@pytest.mark.parametrize("symmetric", [False, True])
@given(values=VALUES)
@settings(deadline=None, max_examples=10)
def test_a_range_contains_zero_and_never_exceeds_the_values(
    observer: Observer, symmetric: bool, values: np.ndarray[Any, Any]
) -> None:
    low, high = range_of(observed(values), observer, symmetric=symmetric)
    assert low <= 0 <= high
    if symmetric:
        assert low == -high and high <= np.abs(values).max()
    else:
        assert low >= min(values.min(), 0) and high <= max(values.max(), 0)


def test_moving_average_follows_the_samples_by_the_momentum() -> None:
    histogram = observed(np.array([-1, 1], np.float32), np.array([-1, 11], np.float32))
    low, high = range_of(histogram, Observer.MOVING_AVERAGE)
    assert (low, high) == (-1.0, pytest.approx(2.0))


def test_percentile_cuts_one_value_in_ten_thousand() -> None:
    values = np.linspace(0, 1, 1_000_000, dtype=np.float32)
    values[:20] = 100
    assert range_of(observed(values), Observer.PERCENTILE)[1] < 1.1
    assert range_of(observed(values), Observer.MIN_MAX)[1] == 100


@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_better_than_min_max_on_long_tails(symmetric: bool) -> None:
    values = np.random.default_rng(0).laplace(size=200_000).astype(np.float32)
    histogram = observed(values)
    found, widest = (range_of(histogram, o, symmetric=symmetric) for o in (Observer.MSE, Observer.MIN_MAX))
    assert exact_error(values, *found) < 0.8 * exact_error(values, *widest)


def test_entropy_cuts_far_outliers_and_keeps_a_uniform_distribution() -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    values[0] = 30
    assert range_of(observed(values), Observer.ENTROPY)[1] < 15
    uniform = np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32)
    low, high = range_of(observed(uniform), Observer.ENTROPY)
    assert low < -0.95 and high > 0.95


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.95])
def test_entropy_is_not_drawn_to_short_ranges_by_a_spike_of_zeros(zeros: float) -> None:
    """Relu leaves many zeros, which are exact in any range."""
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=200_000)).astype(np.float32)
    values[rng.random(len(values)) < zeros] = 0
    found = range_of(observed(values), Observer.ENTROPY)
    assert found[0] == 0 and found[1] > 0.8 * values.max()
    assert exact_error(values, *found) < 3 * exact_error(values, *range_of(observed(values), Observer.MSE))


@given(VALUES)
@settings(deadline=None, max_examples=50)
def test_without_zeros_only_the_bin_at_zero_loses(values: np.ndarray[Any, Any]) -> None:
    histogram = observed(np.append(values, [0, 0, 0]).astype(np.float32))
    counts = histogram.counts_without_zeros()
    (changed,) = np.nonzero(counts != histogram.counts)
    width = np.diff(histogram.centres[:2])
    assert len(changed) <= 1 and np.all(counts <= histogram.counts)
    assert all(0 < histogram.centres[at] <= width[0] / 2 for at in changed)


def test_squared_error_of_the_histogram_is_that_of_the_values() -> None:
    values = np.random.default_rng(1).normal(size=200_000).astype(np.float32)
    histogram = observed(values)
    for low, high in ((-5.0, 5.0), (-2.0, 3.0)):
        assert squared_error(histogram, low, high) == pytest.approx(exact_error(values, low, high), rel=0.03)


def test_channel_ends_are_those_of_the_axis() -> None:
    weights = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 20
    np.testing.assert_array_equal(channel_ends(weights, None), 20)
    np.testing.assert_array_equal(channel_ends(weights, 0), [20, 8])
    np.testing.assert_array_equal(channel_ends(weights, 1), [20, 16, 12])
    np.testing.assert_array_equal(channel_ends(weights, 2), [20, 19, 18, 17])


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.floats(-8, 8, width=32))
)
@settings(deadline=None, max_examples=50)
def test_mse_ends_of_weights_are_never_worse_than_the_largest_magnitude(weights: np.ndarray[Any, Any]) -> None:
    def error(ends: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        rows = weights.reshape(len(weights), -1).astype(np.float64)
        scale = np.where(ends > 0, ends / 127, 1.0)[:, None]
        return np.square(rows - np.clip(np.rint(rows / scale), -127, 127) * scale).sum(axis=1)

    best, plain = channel_ends(weights, 0, mse=True), channel_ends(weights, 0)
    assert np.all(error(best) <= error(plain) + 1e-12)


@given(st.integers(1, 127), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_weights_on_a_grid_are_met_without_error(steps: int, seed: int) -> None:
    grid = np.random.default_rng(seed).integers(-steps, steps + 1, (1, 30))
    grid[0, 0] = steps
    weights = (grid * np.float32(0.013)).astype(np.float32)
    scale = channel_ends(weights, 0, mse=True)[0] / 127
    np.testing.assert_allclose(np.rint(weights / scale) * scale, weights, atol=1e-5 * scale)
