"""The best product of two small matrices in place of a matrix, W ≈ U V, and what it loses.

Plain: the truncated singular value decomposition is nearest to W in Frobenius norm (C. Eckart and G. Young, 1936). What
counts is the output, however: with G = E[x xᵀ] of the layer's input (about the mean, where a bias takes that up),

    min over rank r of E‖(W − U V) x‖²   at   U V = P Pᵀ W,    P the r leading eigenvectors of W G Wᵀ

and the error is the sum of the other eigenvalues. For, with a root L Lᵀ = G, the error is ‖W L − U V L‖², whose least
is at P Pᵀ W L. No inverse of G is needed. The same P makes a regression the best one of its rank (A. Izenman,
Reduced-rank regression for the multivariate linear model, 1975). Without data G = I.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Directions:
    """Of a layer's output: `vectors` [outputs, count], the strongest first, and the energy [count] along each.

    varying: the energy about the mean. What an output always is says nothing: softmax, for one, takes no notice of it.
    """

    vectors: Array
    energy: Array
    varying: float

    def lost(self, rank: int) -> float:
        """The energy outside of the first `rank` directions, as a fraction of what varies."""
        outside = float(self.energy[rank:].sum())
        return outside / self.varying if self.varying > 0 else float(outside > 0)

    def projected(self, matrix: Array, rank: int) -> Array:
        """P Pᵀ W for W [outputs, features]."""
        vectors = self.vectors[:, :rank]
        result: Array = vectors @ (vectors.T @ matrix)
        return result


@dataclass(frozen=True)
class OutputEnergy:
    """What an error of W costs the layer's output: E‖(W − W') x‖² as a fraction of what varies.

    covariance: G, [features, features]; None for I.
    """

    covariance: Array | None
    varying: float

    def lost(self, matrix: Array, lowered: Array) -> float:
        """Of W' in place of W, both [outputs, features]."""
        outside = energy_of(matrix - lowered, self.covariance)
        return outside / self.varying if self.varying > 0 else float(outside > 0)


def energy_of(matrix: Array, covariance: Array | None) -> float:
    """E‖M x‖² = tr(M G Mᵀ) of M [outputs, features]; of G = I without a covariance."""
    return float(((matrix if covariance is None else matrix @ covariance) * matrix).sum())


def directions(matrix: Array, covariance: Array | None, mean: Array | None = None) -> Directions:
    """Eigenvectors of W G Wᵀ.

    Args:
        matrix: W, [outputs, features].
        covariance: G, [features, features]; None for I.
        mean: of the input, where G is not about it; or [parts, features] whose squares add up.
    """
    wide = matrix.astype(np.float64)
    spread = wide @ wide.T if covariance is None else wide @ covariance @ wide.T
    energy, vectors = np.linalg.eigh((spread + spread.T) / 2)
    constant = 0.0 if mean is None else float(np.square(wide @ mean.T).sum())
    return Directions(vectors[:, ::-1], np.maximum(energy[::-1], 0.0), max(float(np.trace(spread)) - constant, 0.0))


def factors(matrix: Array, rank: int) -> tuple[Array, Array]:
    """U [outputs, rank] and V [rank, features] whose product is nearest to W, balanced."""
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return balanced(left[:, :rank] * values[:rank], right[:rank])


def balanced(left: Array, right: Array) -> tuple[Array, Array]:
    """U [outputs, rank] and V [rank, features] of the same product, and of alike ranges.

    The scale of each inner channel is free: it is set so that its column of U and its row of V have the same largest
    magnitude, and a grid of integers serves both alike.
    """
    tallest, widest = np.abs(left).max(axis=0), np.abs(right).max(axis=1)
    scale = np.sqrt(np.where(tallest > 0, tallest, 1.0) / np.where(widest > 0, widest, 1.0))
    return left / scale, right * scale[:, None]


def rank_one_rows(channels: Array, rows: Array, columns: Array) -> Array:
    """C ⊗ U ⊗ V of each term, [rank, channels * rows * columns], of factors [channels, rank] and so on."""
    product: Array = np.einsum("cr,ur,vr->rcuv", channels, rows, columns).reshape(channels.shape[1], -1)
    return product
