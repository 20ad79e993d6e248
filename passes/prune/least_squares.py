"""Least squares whose damping is chosen by rows that they were not fitted to.

    min over W, b of E‖y − W x − b‖² + λ‖W − W₀‖²    →    W = (K + λ W₀) (G + λ I)⁻¹,  b = E[y] − W E[x]

with G = E[x xᵀ] and K = E[y xᵀ] about the means. Few rows determine a W that serves them alone. So the samples are
parted, each part is predicted by a W of the others, and λ rises as long as the error there falls (cross-validation: G.
Golub, M. Heath and G. Wahba, Generalized cross-validation as a method for choosing a good ridge parameter, 1979). Where
even so the weights as they are predict better, they stay. Parts are of neighbours, which may show the same thing:
samples in the order of their classes are predicted by those of other classes.

Where W must be of some kind, such as of low rank, the free W is brought to the nearest of that kind under G, which few
rows know badly: directions that none of them shows would cost nothing. So G is shrunk there (`shrunk`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

Constraint = Callable[[Array, Array], Array]  # of W and G, by group, the nearest W that the layer can have

FOLDS = 4
_EXACT = 1e-9  # of the energy of y: less is rounding
_RISE = 10.0  # of λ, from one trial to the next
_HIGHEST = 1e4  # λ, of the mean of G's diagonal: W is W₀ then


@dataclass(frozen=True)
class Solution:
    """weight: [groups, outputs, features]. bias: [groups, outputs], or None where it is not free.

    gain: the fraction of the error on rows that W was not fitted to which refitting takes away; 0 or less if none.
    """

    weight: Array
    bias: Array | None
    gain: float


def shrunk(covariance: Array, count: int) -> Array:
    """G [features, features] of `count` rows, nearer to a multiple of I the less these can tell it from one.

    Y. Chen and others, Shrinkage algorithms for MMSE covariance estimation, 2010, equation 23.
    """
    size = len(covariance)
    whole, square = float(np.trace(covariance)), float(np.square(covariance).sum())
    told = (count + 1 - 2 / size) * (square - whole**2 / size)
    share = min(1.0, ((1 - 2 / size) * square + whole**2) / told) if told > 0 else 1.0
    result: Array = (1 - share) * covariance + share * whole / size * np.eye(size)
    return result


class LeastSquares:
    """Σ x xᵀ, Σ y xᵀ, Σ y², Σ x, Σ y of each fold, by group.

    Args:
        start: W₀, [groups, outputs, features].
        bias: b₀, [groups, outputs], or None where the layer has none and gets none.
        damping: the least λ, of the mean of G's diagonal.
        standing: the W that stays where fitting gains nothing; W₀ by default.
    """

    def __init__(self, start: Array, bias: Array | None, damping: float, standing: Array | None = None) -> None:
        self._start, self._bias, self._damping = start, bias, damping
        self._standing = start if standing is None else standing
        self._folds = [_Sums(start.shape) for _ in range(FOLDS)]

    def add(self, fold: int, given: Array, wanted: Array) -> None:
        """x [groups, places, features] and y [groups, places, outputs]."""
        self._folds[fold].add(given, wanted)

    def solve(self, constraint: Constraint | None = None) -> Solution:
        """W and b, of the kind that the constraint allows."""
        whole = functools.reduce(_Sums.joined, self._folds)
        damping, gain = self._choose(whole, constraint)
        weight = self._fit(whole, damping, constraint)
        right = self._right(whole) if constraint is None else np.zeros(weight.shape[:2], bool)
        weight[right] = self._standing[right]
        bias = None if self._bias is None else self._bias_of(whole, weight)
        return Solution(weight, bias, gain)

    def _right(self, whole: _Sums) -> Array:
        """bool [groups, outputs]: those that a bias alone sets right. W would be fitted to rounding there."""
        bias = self._bias_of(whole, self._standing)
        found: Array = whole.error(self._standing, bias) <= _EXACT * whole.power
        return found

    def _choose(self, whole: _Sums, constraint: Constraint | None) -> tuple[float, float]:
        """The damping, by free fits, and what W gains."""
        judges = {number: fold for number, fold in enumerate(self._folds) if 0 < fold.count < whole.count}
        if not judges:
            return self._damping, 0.0
        rests = {number: whole.without(fold) for number, fold in judges.items()}
        bias = np.zeros(self._start.shape[:2]) if self._bias is None else self._bias
        before = sum(float(fold.error(self._standing, bias).sum()) for fold in judges.values())

        def error(damping: float, kind: Constraint | None = None) -> float:
            found = 0.0
            for number, rest in rests.items():
                weight = self._fit(rest, damping, kind)
                found += float(judges[number].error(weight, self._bias_of(rest, weight)).sum())
            return found

        best, lowest = self._damping, error(self._damping)
        while best < _HIGHEST and (following := error(best * _RISE)) < lowest:
            best, lowest = best * _RISE, following
        if constraint is not None:
            lowest = error(best, constraint)
        return best, 1 - lowest / before if before > _EXACT * whole.power.sum() else 0.0

    def _fit(self, sums: _Sums, damping: float, constraint: Constraint | None) -> Array:
        """W."""
        inputs, both, given, wanted = sums.means()
        if self._bias is not None:
            inputs = inputs - given[:, :, None] * given[:, None, :]
            both = both - wanted[:, :, None] * given[:, None, :]
        size = inputs.shape[-1]
        held = np.maximum(damping * np.trace(inputs, axis1=1, axis2=2) / size, 1e-12)[:, None, None]
        damped = inputs + np.eye(size) * held
        fitted: Array = np.linalg.solve(damped, (both + held * self._start).swapaxes(1, 2)).swapaxes(1, 2)
        if constraint is None:
            return fitted
        return constraint(fitted, np.stack([shrunk(each, sums.count) for each in inputs]))

    def _bias_of(self, sums: _Sums, weight: Array) -> Array:
        _, _, given, wanted = sums.means()
        if self._bias is None:
            return np.zeros_like(wanted)
        bias: Array = wanted - np.einsum("gof,gf->go", weight, given)
        return bias


class _Sums:
    """Of some of the rows."""

    def __init__(self, shape: Sequence[int]) -> None:
        groups, outputs, features = shape
        self.inputs, self.both = np.zeros((groups, features, features)), np.zeros((groups, outputs, features))
        self.given, self.wanted = np.zeros((groups, features)), np.zeros((groups, outputs))
        self.power = np.zeros((groups, outputs))
        self.count = 0

    def add(self, given: Array, wanted: Array) -> None:
        self.inputs += given.swapaxes(1, 2) @ given
        self.both += wanted.swapaxes(1, 2) @ given
        self.given += given.sum(axis=1, dtype=np.float64)
        self.wanted += wanted.sum(axis=1, dtype=np.float64)
        self.power += np.square(wanted, dtype=np.float64).sum(axis=1)
        self.count += given.shape[1]

    def joined(self, other: _Sums, sign: int = 1) -> _Sums:
        found = _Sums(self.both.shape)
        found.inputs, found.both = self.inputs + sign * other.inputs, self.both + sign * other.both
        found.given, found.wanted = self.given + sign * other.given, self.wanted + sign * other.wanted
        found.power, found.count = self.power + sign * other.power, self.count + sign * other.count
        return found

    def without(self, other: _Sums) -> _Sums:
        return self.joined(other, -1)

    def means(self) -> tuple[Array, Array, Array, Array]:
        """E[x xᵀ], E[y xᵀ], E[x], E[y]."""
        count = max(self.count, 1)
        return self.inputs / count, self.both / count, self.given / count, self.wanted / count

    def error(self, weight: Array, bias: Array) -> Array:
        """Σ (y − W x − b)², [groups, outputs]."""
        product = np.einsum("gof,gfh,goh->go", weight, self.inputs, weight, optimize=True)
        crossed = np.sum(weight * self.both, axis=-1)
        means = np.einsum("gof,gf->go", weight, self.given) - self.wanted
        found: Array = product - 2 * crossed + self.power + bias * (2 * means + self.count * bias)
        return found
