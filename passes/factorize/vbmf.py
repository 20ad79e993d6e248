"""How many directions of a matrix are more than noise, by empirical variational Bayesian matrix factorization.

W = B Aᵀ + E with Gaussian priors on A and B and noise E of variance σ² has a global solution in closed form
(S. Nakajima and others, Global analytic solution of fully-observed variational Bayesian matrix factorization, 2013,
theorem 2). For W of L × M, L ≤ M, α = L / M and singular values γ, a direction is kept if

    γ² > M σ² x̲,    x̲ = (1 + τ̲)(1 + α / τ̲),    τ̲ = 2.5129 √α

and σ² is where Σ ψ(γ² / (M σ²)) is least, a function of one number (corollary 1): ψ(x) = x − log x up to x̲, and above
it x − τ + log((τ + 1) / x) + α log(τ / α + 1) with τ = (x − 1 − α + √((x − 1 − α)² − 4 α)) / 2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

Array = np.ndarray[Any, Any]


def evbmf_rank(matrix: Array) -> int:
    """The rank of `matrix` [rows, columns] without noise; 0 if nothing else is in it."""
    rows, columns = sorted(matrix.shape)
    squares = np.square(np.linalg.svd(matrix.astype(np.float64), compute_uv=False))
    if not squares.sum():
        return 0
    alpha = rows / columns
    least = 2.5129 * math.sqrt(alpha)
    bound = (1 + least) * (1 + alpha / least)
    most = min(math.ceil(rows / (1 + alpha)) - 1, rows - 1)  # directions that can be more than noise
    high = squares.sum() / (rows * columns)
    low = max(squares[most] / (columns * bound), squares[most:].mean() / columns, high * 1e-12)
    found = minimize_scalar(
        lambda log: _free_energy(math.exp(log), squares, columns, alpha, bound),
        bounds=(math.log(low), math.log(max(high, low * (1 + 1e-9)))),
        method="bounded",
    )
    return int(np.sum(squares > columns * math.exp(found.x) * bound))


def _free_energy(variance: float, squares: Array, columns: int, alpha: float, bound: float) -> float:
    x = np.maximum(squares / (columns * variance), 1e-300)
    noise, kept = x[x <= bound], x[x > bound]
    shifted = kept - (1 + alpha)
    tau = (shifted + np.sqrt(np.square(shifted) - 4 * alpha)) / 2
    above = kept - tau + np.log((tau + 1) / kept) + alpha * np.log(tau / alpha + 1)
    return float((noise - np.log(noise)).sum() + above.sum())
