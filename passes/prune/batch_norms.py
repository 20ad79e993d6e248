"""Batch normalizations behind layers that have lost channels: their statistics estimated anew.

What reaches the normalization has other means and variances than before. Statistics that bring those of its output back
to the original's, on the same samples:

    σ' = σ √(v' / v),   μ' = m' − (m − μ) σ' / σ

with m, v the mean and variance of a channel in the original, and m', v' in the model that is left. Where the samples
are like the training set, m = μ and v = σ², so that these are m' and v'.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant, is_standard
from graphopt.passes.cleanup.constants import set_constant

Array = np.ndarray[Any, Any]

_EPSILON = 1e-5  # what the operator adds to the variance where it does not say


def has_statistics(node: ir.Node) -> bool:
    """Whether `node` normalizes by a constant mean and variance."""
    if not is_standard(node, "BatchNormalization") or node.attributes.get_int("training_mode", 0) != 0:
        return False
    return all(constant(value) is not None for value in node.inputs[3:5])


def estimate_statistics(node: ir.Node, runs: Iterable[tuple[Array, Array]]) -> None:
    """Give `node` statistics that bring the moments of its output back.

    Args:
        node: of the model that is left, with constant statistics.
        runs: of each sample, what the node gets in the original, without the channels that are gone, and what it gets
            now; channels are on axis 1.
    """
    constants = constant(node.inputs[3]), constant(node.inputs[4])
    if constants[0] is None or constants[1] is None:
        return
    mean, variance = (np.asarray(array, np.float64) for array in constants)
    before, now = _Moments(len(mean)), _Moments(len(mean))
    for original, left in runs:
        before.add(original)
        now.add(left)
    found = node.attributes.get("epsilon")
    epsilon = _EPSILON if found is None else found.as_float()
    known = (before.variance > 0) & (now.variance > 0)
    ratio = np.sqrt(np.where(known, now.variance, 1) / np.where(known, before.variance, 1))
    shifted = now.mean - (before.mean - mean) * ratio
    spread = np.maximum((variance + epsilon) * np.square(ratio) - epsilon, 0)
    set_constant(node, 3, np.where(known, shifted, mean).astype(constants[0].dtype))
    set_constant(node, 4, np.where(known, spread, variance).astype(constants[1].dtype))


class _Moments:
    """Σ x and Σ x² by channel, in float64."""

    def __init__(self, channels: int) -> None:
        self._total, self._squares, self._count = np.zeros(channels), np.zeros(channels), 0

    def add(self, array: Array) -> None:
        rows = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).astype(np.float64)
        self._total += rows.sum(axis=1)
        self._squares += np.square(rows).sum(axis=1)
        self._count += rows.shape[1]

    @property
    def mean(self) -> Array:
        return self._total / self._count

    @property
    def variance(self) -> Array:
        return np.maximum(self._squares / self._count - np.square(self.mean), 0)
