"""k-means in one dimension: the few numbers that stand for many with the least squared error.

In one dimension a cluster is an interval of the sorted numbers; its mean and error come from prefix sums. So a step of
Lloyd's algorithm costs O(k log n), whatever the data. It stops in a local minimum: which one depends on the start, and
the smallest error of three wins:
- evenly over the range, which keeps the few large weights (Han, Mao and Dally, "Deep Compression", 2016, section 3.2);
- evenly over the ranks;
- with the density f^(1/3), which is optimal for many centres (Panter and Dite, "Quantization distortion in pulse-count
  modulation", 1951): between quantiles at a distance d the density is proportional to 1 / d, so d^(2/3) of the centres.
From there on, clusters that lost all numbers, and pairs of neighbours that cost least to merge, are given up for
halves of those with the largest error, as long as that helps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_STEPS = 200  # of Lloyd's algorithm
_ROUNDS = 12  # of moving centres
_KNOTS = 129  # quantiles that the density is read from


def codebook(numbers: Array, entries: int) -> Array:
    """At most `entries` numbers, ascending, for `numbers` (finite, any shape, not empty); in double precision.

    They are the numbers themselves if there are not more of them.
    """
    data = _Data(np.sort(np.asarray(numbers, np.float64), axis=None))
    distinct = np.unique(data.ordered)
    if len(distinct) <= entries:
        return distinct
    start = min((data.settle(start) for start in _starts(data.ordered, entries)), key=data.error)
    best, error = start, data.error(start)
    for _ in range(_ROUNDS):
        moved = data.settle(data.moved(best, entries))
        if (found := data.error(moved)) >= error:
            break
        best, error = moved, found
    return best


def nearest(numbers: Array, centres: Array) -> Array:
    """The index of the centre (ascending) that is nearest to each number; the lower one in the middle."""
    return np.searchsorted(_borders(centres), numbers, side="left")


def _starts(ordered: Array, entries: int) -> Iterator[Array]:
    ranks = (np.arange(entries) + 0.5) / entries
    yield np.linspace(ordered[0], ordered[-1], entries)
    yield np.unique(ordered[(ranks * len(ordered)).astype(np.int64)])
    knots = np.quantile(ordered, np.linspace(0, 1, _KNOTS))
    density = np.concatenate([[0.0], np.cumsum(np.diff(knots) ** (2 / 3))])
    yield np.interp(ranks * density[-1], density, knots)


def _borders(centres: Array) -> Array:
    return (centres[1:] + centres[:-1]) / 2


class _Data:
    """Sorted numbers with their prefix sums; the mean of all is taken off first, for precision."""

    def __init__(self, ordered: Array) -> None:
        self.ordered = ordered
        self.mean = float(ordered.mean())
        centred = ordered - self.mean
        self.sums = np.concatenate([[0.0], np.cumsum(centred)])
        self.squares = np.concatenate([[0.0], np.cumsum(centred**2)])

    def settle(self, centres: Array) -> Array:
        """Where Lloyd's algorithm comes to rest; a centre that no number is nearest to is given up."""
        before = np.empty(0, np.int64)
        for _ in range(_STEPS):
            ends = self._ends(centres)
            if np.array_equal(ends, before):
                break
            before = ends
            centres = np.diff(self.sums[ends]) / np.diff(ends) + self.mean
        return centres

    def error(self, centres: Array) -> float:
        """The squared error of numbers that are replaced by the mean of their cluster."""
        return float(self._errors(self._ends(centres)).sum())

    def moved(self, centres: Array, entries: int) -> Array:
        """`entries` centres: some neighbours merged, and the clusters with the largest errors halved instead."""
        ends = self._ends(centres)
        errors = self._errors(ends)
        merged = self._merging(ends, errors)
        few = max(entries // 16, 1)
        cheapest = np.argsort(merged, kind="stable")[:few]
        cheapest = cheapest[np.isin(cheapest - 1, cheapest, invert=True)]  # of a row of three, one pair
        worst = np.argsort(-errors, kind="stable")
        worst = worst[np.isin(worst, np.r_[cheapest, cheapest + 1], invert=True)]
        halved = worst[: entries - len(errors) + len(cheapest)]
        middles = (ends[halved] + ends[halved + 1]) // 2
        borders = np.unique(np.r_[np.delete(ends, cheapest + 1), middles])
        means: Array = np.diff(self.sums[borders]) / np.diff(borders) + self.mean
        return means

    def _ends(self, centres: Array) -> Array:
        inner = np.searchsorted(self.ordered, _borders(centres), side="right")
        return np.unique(np.concatenate([[0], inner, [len(self.ordered)]]))

    def _errors(self, ends: Array) -> Array:
        errors: Array = np.diff(self.squares[ends]) - np.diff(self.sums[ends]) ** 2 / np.diff(ends)
        return errors

    def _merging(self, ends: Array, errors: Array) -> Array:
        """What the error grows by if cluster i and i + 1 become one."""
        counts = ends[2:] - ends[:-2]
        both: Array = self.squares[ends[2:]] - self.squares[ends[:-2]]
        both -= (self.sums[ends[2:]] - self.sums[ends[:-2]]) ** 2 / counts
        both -= errors[:-1] + errors[1:]
        return both
