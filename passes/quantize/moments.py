"""The second moments of a layer's input and output, from which the error of any choice of its weights follows.

With y = W x in float, x̂ the input that the layer gets behind rounded layers, and means taken over columns:

    E‖y − Ŵ x̂‖² = tr(Ŵ G Ŵᵀ) − 2 tr(Ŵ Kᵀ) + constant,     G = E[x̂ x̂ᵀ], K = E[y x̂ᵀ]

So columns are summed up as they come, and an optimizer sees all of them at once, whatever their number. Where the layer
has a bias, it takes up the difference of the means, b + E[y] − Ŵ E[x̂], and the moments are about the means.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Moments:
    """By group, in float64: `inputs` G [groups, features, features], `both` K [groups, outputs, features], `outputs`
    E[y²] [groups, outputs], and the means `given` E[x̂] [groups, features] and `wanted` E[y] [groups, outputs].
    """

    inputs: Array
    both: Array
    outputs: Array
    given: Array
    wanted: Array

    def centred(self) -> Moments:
        """About the means."""
        inputs = self.inputs - self.given[:, :, None] * self.given[:, None, :]
        both = self.both - self.wanted[:, :, None] * self.given[:, None, :]
        return Moments(inputs, both, self.outputs - self.wanted**2, self.given, self.wanted)

    def error(self, matrix: Array) -> float:
        """E‖y − Ŵ x̂‖² for Ŵ [groups, outputs, features]; where it is small beside E‖y‖², float32 limits it."""
        return float(np.sum(self.outputs) + np.sum((matrix @ self.inputs - 2 * self.both) * matrix))


def moments(matrix: Array, columns: Iterable[tuple[Array, Array]]) -> Moments:
    """Sum up the columns of a layer, one at least.

    Args:
        matrix: W, [groups, outputs, features].
        columns: pairs of x and x̂, each [groups, columns, features].
    """
    groups, outputs, features = matrix.shape
    inputs, both = np.zeros((groups, features, features)), np.zeros((groups, outputs, features))
    given, wanted, squares = np.zeros((groups, features)), np.zeros((groups, outputs)), np.zeros((groups, outputs))
    weights = matrix.astype(np.float32).swapaxes(1, 2)
    count = 0
    for exact, found in columns:
        made = exact @ weights
        inputs += found.swapaxes(1, 2) @ found
        both += made.swapaxes(1, 2) @ found
        squares += np.square(made, dtype=np.float64).sum(axis=1)
        given += found.sum(axis=1, dtype=np.float64)
        wanted += made.sum(axis=1, dtype=np.float64)
        count += found.shape[1]
    return Moments(inputs / count, both / count, squares / count, given / count, wanted / count)
