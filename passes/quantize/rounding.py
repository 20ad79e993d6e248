"""Rounding weights so that a layer's output keeps its value, not each weight its own.

Both methods minimize, for each output with the weights w and the scales s of its grid,

    f(q) = (s q) G (s q)ᵀ − 2 (s q) Kᵀ        over integers q from `low` to `high`

with `Moments` G and K. A fraction `damping` of the mean of G's diagonal is added to it, and as much of w to K: it draws
s q towards w where the columns say little. In what follows u = w / s.

adaround  M. Nagel and others, Up or Down? Adaptive Rounding for Post-Training Quantization, 2020: q = clip(⌊u⌋ + h(V))
          (equation 22) with the rectified sigmoid h(V) = clip(σ(V)(ζ − γ) + γ, 0, 1) (23), and the regularizer
          Σ 1 − |2 h(V) − 1|^β (24), whose β falls from 20 to 2, so that h goes to 0 or 1 at the end. Adam moves V. The
          loss is that of (25) without the activation function, which makes it quadratic.
gptq      E. Frantar and others, GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
          2022, algorithm 1: one column of weights after the other is rounded to the nearest integer, and those that
          follow take up the error, by the Cholesky factor of G⁻¹. It keeps w x̂ instead of y, and does not iterate.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_ZETA, _GAMMA = 1.1, -0.1
_BETA = (20.0, 2.0)
_WARM = 0.2  # of the iterations pass before the regularizer sets in, as in the paper
_DECAY = (0.9, 0.999)  # of Adam's moments
_BLOCK = 128  # columns whose errors are handed on at a time


class Method(enum.Enum):
    """How integers are chosen."""

    ADAROUND = "adaround"
    GPTQ = "gptq"


@dataclass(frozen=True)
class Grid:
    """scales: float64, [groups, outputs, features] or what broadcasts to it; low, high: the integers' range."""

    scales: Array
    low: int
    high: int

    def nearest(self, weights: Array) -> Array:
        """The nearest integers, float64: what is taken without a look at the data."""
        return np.asarray(np.clip(np.rint(weights / self.scales), self.low, self.high))


@dataclass(frozen=True)
class Problem:
    """weights: w [groups, outputs, features]; curvature: G, damped [groups, features, features]; target: K, damped."""

    weights: Array
    grid: Grid
    curvature: Array
    target: Array

    def losses(self, integers: Array) -> Array:
        """f by output, [groups, outputs]."""
        values = integers * self.grid.scales
        return np.asarray(np.sum((values @ self.curvature - 2 * self.target) * values, axis=2))


def problem(weights: Array, grid: Grid, curvature: Array, target: Array, damping: float) -> Problem:
    """The problem with its damping, which is 1 where an input is always 0."""
    diagonal = np.diagonal(curvature, axis1=1, axis2=2).mean(axis=1)
    more = np.where(diagonal > 0, damping * diagonal, 1.0)[:, None, None]
    return Problem(weights, grid, curvature + more * np.eye(curvature.shape[1]), target + more * weights)


def adaround(posed: Problem, *, iterations: int, learning_rate: float, regularization: float) -> Array:
    """Integers next to u, below or above, float64.

    Args:
        regularization: of an output whose weights are all undecided, in units of the loss that rounding at random has.
    """
    grid = posed.grid
    steps = posed.weights / grid.scales
    scales = np.broadcast_to(grid.scales, steps.shape)
    below = np.floor(steps)
    above = (steps - below).clip(1e-6, 1 - 1e-6)
    variables = -np.log((_ZETA - _GAMMA) / (above - _GAMMA) - 1).astype(np.float32)
    # The loss is divided by what independent errors of variance 1/12 come to: so one learning rate serves all layers.
    diagonal = np.diagonal(posed.curvature, axis1=1, axis2=2)[:, None, :]
    unit = np.sum(diagonal * scales**2, axis=2, keepdims=True) / 12
    # About ⌊u⌋, where numbers are small: the gradient at h is 2 s (s h G − (K − s ⌊u⌋ G)).
    slope = (2 * scales / unit * (posed.target - (below * scales) @ posed.curvature)).astype(np.float32)
    curvature = posed.curvature.astype(np.float32)
    inside, outside = scales.astype(np.float32), (2 * scales / unit).astype(np.float32)
    least, most = grid.low - below, grid.high - below
    weight = regularization / steps.shape[2]
    first, second = np.zeros_like(variables), np.zeros_like(variables)
    for iteration in range(iterations):
        sigmoid = 1 / (1 + np.exp(-variables))
        raw = sigmoid * (_ZETA - _GAMMA) + _GAMMA
        up = raw.clip(0, 1)
        gradient = (up * inside) @ curvature * outside - slope
        gradient *= (up >= least) & (up <= most)  # what the grid's end clips does not count
        progress = (iteration / iterations - _WARM) / (1 - _WARM)
        if progress > 0:
            beta = _BETA[0] + (_BETA[1] - _BETA[0]) * progress
            side = 2 * up - 1
            gradient -= (2 * beta * weight) * np.sign(side) * np.abs(side) ** (beta - 1)
        gradient *= sigmoid * (1 - sigmoid) * (_ZETA - _GAMMA) * ((raw > 0) & (raw < 1))
        first += (1 - _DECAY[0]) * (gradient - first)
        second += (1 - _DECAY[1]) * (np.square(gradient) - second)
        ahead, scale = 1 - _DECAY[0] ** (iteration + 1), 1 - _DECAY[1] ** (iteration + 1)
        variables -= learning_rate * (first / ahead) / (np.sqrt(second / scale) + 1e-8)
    up = 1 / (1 + np.exp(-variables)) * (_ZETA - _GAMMA) + _GAMMA
    return np.asarray(np.clip(below + (up >= 0.5), grid.low, grid.high))


def gptq(posed: Problem) -> Array:
    """Integers in the order of the features, float64."""
    inverse = np.linalg.inv(posed.curvature)
    factor = np.linalg.cholesky((inverse + inverse.swapaxes(1, 2)) / 2).swapaxes(1, 2)  # upper
    left = posed.weights.copy()
    scales = np.broadcast_to(posed.grid.scales, left.shape)
    integers = np.empty_like(left)
    features = left.shape[2]
    for start in range(0, features, _BLOCK):
        end = min(start + _BLOCK, features)
        errors = np.empty((*left.shape[:2], end - start))
        for column in range(start, end):
            scale = scales[:, :, column]
            integers[:, :, column] = (left[:, :, column] / scale).round().clip(posed.grid.low, posed.grid.high)
            error = (left[:, :, column] - integers[:, :, column] * scale) / factor[:, column, column, None]
            left[:, :, column:end] -= error[:, :, None] * factor[:, None, column, column:end]
            errors[:, :, column - start] = error
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    return integers
