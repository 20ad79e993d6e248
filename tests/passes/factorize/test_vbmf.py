"""Variational Bayes tells the rank below noise, and finds nothing in noise alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.factorize.vbmf import evbmf_rank


def noisy(rows: int, columns: int, rank: int, noise: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    return np.asarray(signal + noise * rng.normal(size=(rows, columns)))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(30, 90), columns=st.integers(30, 90), rank=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_rank_below_noise_is_found(rows: int, columns: int, rank: int, seed: int) -> None:
    assert evbmf_rank(noisy(rows, columns, rank, 0.3, seed)) == rank


@pytest.mark.parametrize("shape", [(64, 64), (32, 300), (300, 32)])
@pytest.mark.parametrize("seed", range(4))
def test_noise_has_no_rank(shape: tuple[int, int], seed: int) -> None:
    assert evbmf_rank(np.random.default_rng(seed).normal(size=shape)) == 0


def test_scale_and_transposition_change_nothing() -> None:
    matrix = noisy(40, 70, 5, 0.5, 0)
    assert evbmf_rank(matrix) == evbmf_rank(1e-6 * matrix) == evbmf_rank(1e6 * matrix.T) == 5


def test_a_matrix_of_zeros_has_none() -> None:
    assert evbmf_rank(np.zeros((8, 9))) == 0
