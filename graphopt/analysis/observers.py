"""Observers: from the values that a tensor takes to the range that its integers are to cover.

A `Histogram` is filled piece by piece and stays small. Its bins have a power of two as width and lie on multiples of
it; when values fall outside, the width doubles and bins merge in pairs. So the result does not depend on the order or
the grouping of the pieces, and no count is ever split by interpolation.

`range_of` reads a range from it. min-max and moving average look at the ends alone, percentile cuts a fraction off,
entropy minimizes the Kullback-Leibler divergence (S. Migacz, 8-bit inference with TensorRT, 2017, here with two ends),
mse the mean squared error of quantization, clipping and rounding together.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Range = tuple[float, float]  # low and high, low <= 0 <= high

MAX_BINS = 4096  # at least half of them lie within the values' range
LEVELS = 256
MOMENTUM = 0.9  # of the moving average: what each sample leaves of the average before it
PERCENTILE = 99.99  # of the values lie within the range

_SHRINKS = np.linspace(1.0, 0.3, 36)  # fractions of an end that entropy and mse try
_SWEEPS = 2
_STEPS = (127, *range(126, 63, -1), *range(129, 192, 3))  # that the largest weight may be; above 127 it is clipped
_PIECE = 1 << 17  # values that are binned at a time, so that their indices stay in the cache
_LARGEST_EXPONENT = 127  # of a power of two in float32


class Observer(enum.Enum):
    """How the range of a tensor is chosen."""

    MIN_MAX = "min-max"
    MOVING_AVERAGE = "moving-average"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MSE = "mse"


class Histogram:
    """How often a tensor took which values: at most MAX_BINS counts, the extremes, and their moving average."""

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf
        self.average: Range | None = None
        self.not_finite = 0  # NaN and infinities seen; they are in no bin
        self.counts = np.zeros(1, np.int64)
        self._exponent = -1074  # the width of a bin is 2**exponent
        self._first = 0  # bin i holds values from (first + i) * width to below (first + i + 1) * width

    @property
    def total(self) -> int:
        """How many finite values were seen."""
        return int(self.counts.sum())

    @property
    def centres(self) -> Array:
        """The middle of each bin, float64."""
        return (self._first + np.arange(len(self.counts)) + 0.5) * 2.0**self._exponent

    def counts_without_zeros(self) -> Array:
        """The counts, float64, where the bin that begins at 0 holds no more than the larger of those beside it."""
        counts = self.counts.astype(np.float64)
        place = -self._first
        beside = [counts[at] for at in (place - 1, place + 1) if 0 <= at < len(counts)]
        if 0 <= place < len(counts) and beside:
            counts[place] = min(counts[place], max(beside))
        return counts

    def update(self, values: Array) -> None:
        """Count the values of one sample, of any shape."""
        flat = values.reshape(-1)
        low, high = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 0.0)
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = flat[np.isfinite(flat)]
            self.not_finite += flat.size - finite.size
            flat = finite
            low, high = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 0.0)
        if not flat.size:
            return
        first = self.average is None
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.average = (low, high) if self.average is None else _blend(self.average, (low, high))
        self._widen(first)
        for start in range(0, flat.size, _PIECE):
            places = _bins(flat[start : start + _PIECE], self._exponent)
            places -= self._first
            self.counts += np.bincount(places, minlength=len(self.counts))

    def _widen(self, first: bool) -> None:
        """Give the bins the width and the place that hold every value from low to high."""
        exponent = max(self._exponent, _exponent_for(self.low, self.high))
        begin, end = _bin(self.low, exponent), _bin(self.high, exponent)
        if first:
            self._exponent, self._first, self.counts = exponent, begin, np.zeros(end - begin + 1, np.int64)
            return
        shift = exponent - self._exponent
        counts = np.zeros(end - begin + 1, np.int64)
        places = ((self._first + np.arange(len(self.counts), dtype=np.int64)) >> min(shift, 62)) - begin
        np.add.at(counts, places, self.counts)
        self._exponent, self._first, self.counts = exponent, begin, counts


def _exponent_for(low: float, high: float) -> int:
    """The smallest exponent with which MAX_BINS bins hold low and high."""
    exponent = max(math.frexp(max(abs(low), abs(high)))[1] - 53, -1000)
    if high > low:
        exponent = max(exponent, math.frexp((high / 2 - low / 2) / MAX_BINS)[1])
    while _bin(high, exponent) - _bin(low, exponent) >= MAX_BINS:
        exponent += 1
    return exponent


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _bins(values: Array, exponent: int) -> Array:
    """`_bin` of each value: exact in float32 too, where a power of two as factor neither rounds nor overflows."""
    narrow = values.dtype.itemsize <= 4 and exponent >= -_LARGEST_EXPONENT
    scaled = values.astype(np.float32 if narrow else np.float64)
    if exponent > 0:
        np.floor(scaled, out=scaled)  # first, so that no small negative number becomes 0
    np.multiply(scaled, 2.0**-exponent, out=scaled)
    np.floor(scaled, out=scaled)
    places: Array = scaled.astype(np.int64)
    return places


def _blend(average: Range, new: Range) -> Range:
    low, high = (MOMENTUM * old + (1 - MOMENTUM) * now for old, now in zip(average, new, strict=True))
    return low, high


def range_of(histogram: Histogram, observer: Observer, *, symmetric: bool = False) -> Range:
    """The range that int8 is to cover; it contains 0, so that padding and ReLU are exact.

    Args:
        histogram: with one value at least.
        observer: the rule.
        symmetric: the range is centred on 0, as where the zero point is 0.

    Raises ValueError if the histogram is empty.
    """
    if histogram.average is None:
        raise ValueError("an empty histogram has no range")
    low, high = _RULES[observer](histogram, symmetric)
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    return low, high


def _min_max(histogram: Histogram, symmetric: bool) -> Range:
    return histogram.low, histogram.high


def _moving_average(histogram: Histogram, symmetric: bool) -> Range:
    return histogram.average or (0.0, 0.0)


def _percentile(histogram: Histogram, symmetric: bool) -> Range:
    """Half of what may be cut is cut at each end; in the symmetric case all of it by magnitude."""
    cut = 1 - PERCENTILE / 100
    if symmetric:
        order = np.argsort(np.abs(histogram.centres), kind="stable")
        within = np.cumsum(histogram.counts[order]) / histogram.total
        end = float(np.abs(histogram.centres)[order][int(np.searchsorted(within, 1 - cut))])
        return max(histogram.low, -end), min(histogram.high, end)
    within = np.cumsum(histogram.counts) / histogram.total
    first = int(np.searchsorted(within, cut / 2, side="right"))
    last = int(np.searchsorted(within, 1 - cut / 2))
    centres = histogram.centres
    return max(histogram.low, float(centres[first])), min(histogram.high, float(centres[last]))


def _entropy(histogram: Histogram, symmetric: bool) -> Range:
    return _search(histogram, symmetric, _divergence)


def _mse(histogram: Histogram, symmetric: bool) -> Range:
    return _search(histogram, symmetric, squared_error)


_RULES: Mapping[Observer, Callable[[Histogram, bool], Range]] = {
    Observer.MIN_MAX: _min_max,
    Observer.MOVING_AVERAGE: _moving_average,
    Observer.PERCENTILE: _percentile,
    Observer.ENTROPY: _entropy,
    Observer.MSE: _mse,
}


def _search(histogram: Histogram, symmetric: bool, loss: Callable[[Histogram, float, float], float]) -> Range:
    """The range with the smallest loss: one end after the other, each tried at fractions of its extreme value."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if symmetric:
        end = max(-low, high)
        best = min(_SHRINKS, key=lambda shrink: loss(histogram, -end * shrink, end * shrink))
        return -end * float(best), end * float(best)
    found = (low, high)
    for _ in range(_SWEEPS):
        before = found
        highs = [high * shrink for shrink in _SHRINKS] if high else [0.0]
        found = (found[0], float(min(highs, key=lambda end: loss(histogram, found[0], end))))
        lows = [low * shrink for shrink in _SHRINKS] if low else [0.0]
        found = (float(min(lows, key=lambda end: loss(histogram, end, found[1]))), found[1])
        if found == before:
            break
    return found


def squared_error(histogram: Histogram, low: float, high: float) -> float:
    """Σ (x - q(x))² over the histogram, where q has LEVELS levels from low to high, one of them 0."""
    if high <= low:
        return math.inf if histogram.high > histogram.low else 0.0
    scale = (high - low) / (LEVELS - 1)
    begin = np.rint(low / scale)
    centres = histogram.centres
    rounded = np.clip(np.rint(centres / scale), begin, begin + LEVELS - 1) * scale
    return float(histogram.counts @ np.square(centres - rounded))


def _divergence(histogram: Histogram, low: float, high: float) -> float:
    """KL divergence of the quantized from the clipped distribution, as TensorRT calibrates, per value.

    The counts outside go to the outermost bins of the clipped distribution, not to the quantized one, which spreads
    each level's own counts evenly over the bins of the level that hold any. Zeros are exact whatever the range, and a
    spike of them, as Relu leaves, would ask for levels as narrow as a bin: they count like the bins beside them.
    """
    if high <= low:
        return math.inf if histogram.high > histogram.low else 0.0
    scale = (high - low) / (LEVELS - 1)
    levels = (np.rint(histogram.centres / scale) - np.rint(low / scale)).astype(np.int64)
    inside = np.flatnonzero((levels >= 0) & (levels < LEVELS))
    if not inside.size:
        return math.inf
    begin, end = inside[0], inside[-1] + 1
    counts, levels = histogram.counts_without_zeros(), levels[begin:end]
    clipped = counts[begin:end].copy()
    held = np.bincount(levels, clipped, LEVELS)
    used = np.bincount(levels, clipped > 0, LEVELS)
    spread = np.divide(held, used, out=np.zeros(LEVELS), where=used > 0)[levels] * (clipped > 0)
    clipped[0] += counts[:begin].sum()
    clipped[-1] += counts[end:].sum()
    total, kept = clipped.sum(), spread.sum()
    if not kept:
        return math.inf
    p, q = clipped / total, np.maximum(spread / kept, 1e-12)
    present = p > 0
    return float(np.sum(p[present] * np.log(p[present] / q[present])))


def channel_ends(weights: Array, axis: int | None, *, mse: bool = False) -> Array:
    """The largest magnitude that symmetric 8-bit weights are to hold, for each index of `axis` (None: one for all).

    Args:
        weights: of any shape.
        axis: the output channels; one end each.
        mse: the end with the smallest squared error instead of the largest magnitude. Each end that is tried makes the
            largest magnitude a whole number of steps, so that weights that lie on a grid of at most 127 steps, as
            training with simulated quantization leaves them, are met without an error.

    Returns float64 of shape [channels], or [] without an axis.
    """
    rows = weights.reshape(1, -1) if axis is None else np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    ends = np.abs(rows).max(axis=1, initial=0.0).astype(np.float64)
    if mse:
        ends = _best_ends(rows.astype(np.float32), ends)
    result: Array = ends if axis is not None else ends[0]
    return result


def _best_ends(rows: Array, largest: Array) -> Array:
    best, least = largest.copy(), np.full(len(rows), np.inf)
    buffer, squares = np.empty_like(rows), np.empty_like(rows)
    for steps in _STEPS:
        scale = np.where(largest > 0, largest / steps, 1.0).astype(np.float32)[:, None]
        np.divide(rows, scale, out=buffer)
        np.rint(buffer, out=squares)
        np.clip(squares, -127, 127, out=squares)
        np.subtract(buffer, squares, out=squares)  # in steps: what rounding and clipping lose
        error = np.einsum("ij,ij->i", squares, squares, dtype=np.float64) * np.square(scale[:, 0], dtype=np.float64)
        better = error < least * (1 - 1e-6)
        best, least = np.where(better, largest / steps * 127, best), np.where(better, error, least)
    return best
