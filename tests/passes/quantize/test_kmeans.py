"""k-means in one dimension: near the optimum that dynamic programming finds, and exact where it can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.quantize.kmeans import codebook, nearest

Array = np.ndarray


def least_error(numbers: Array, entries: int) -> float:
    """By dynamic programming over the sorted numbers (Wang and Song, "Ckmeans.1d.dp", 2011)."""
    ordered = np.sort(numbers.astype(np.float64))
    sums, squares = (np.concatenate([[0.0], np.cumsum(ordered**power)]) for power in (1, 2))
    begin, end = np.ogrid[: len(ordered) + 1, : len(ordered) + 1]
    count = np.maximum(end - begin, 1)
    error = squares[end] - squares[begin] - (sums[end] - sums[begin]) ** 2 / count
    error = np.where(end > begin, error, np.inf)
    best = error[0]
    for _ in range(entries - 1):
        best = np.minimum(best, (best[:, None] + error).min(axis=0))
    return float(best[-1])


def error_of(numbers: Array, centres: Array) -> float:
    return float(((numbers - centres[nearest(numbers, centres)]) ** 2).sum())


@pytest.mark.parametrize("entries", [2, 5, 16, 64])
@pytest.mark.parametrize("kind", ["normal", "uniform", "heavy tails", "two humps", "outlier"])
def test_the_error_is_near_the_least(kind: str, entries: int) -> None:
    rng = np.random.default_rng(entries)
    numbers = {
        "normal": rng.normal(size=600),
        "uniform": rng.uniform(size=600),
        "heavy tails": rng.standard_t(3, 600),
        "two humps": np.concatenate([rng.normal(-5, 1, 300), rng.normal(5, 0.1, 300)]),
        "outlier": np.append(rng.normal(size=599), 1000.0),
    }[kind]
    centres = codebook(numbers, entries)
    assert len(centres) <= entries and (np.diff(centres) > 0).all()
    assert least_error(numbers, entries) <= error_of(numbers, centres) * (1 + 1e-9)
    assert error_of(numbers, centres) <= 1.15 * least_error(numbers, entries)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60).map(np.array),
    st.integers(2, 16),
)
def test_any_numbers_have_a_codebook(numbers: Array, entries: int) -> None:
    centres = codebook(numbers, entries)
    assert 1 <= len(centres) <= entries and (np.diff(centres) > 0).all()
    index = nearest(numbers, centres)
    distance = np.abs(numbers - centres[index])
    assert (distance <= np.abs(numbers[:, None] - centres).min(axis=1) + 1e-9).all()
    if len(np.unique(numbers)) <= entries:
        assert np.array_equal(centres[index], numbers)


def test_the_same_numbers_in_another_order_or_shape_have_the_same_codebook() -> None:
    numbers = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    assert np.array_equal(codebook(numbers, 16), codebook(numbers.T.ravel()[::-1], 16))
