"""Refitting gains on rows that it was not fitted to, or it is declined."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.passes.prune.least_squares import FOLDS, LeastSquares

Array = np.ndarray[Any, Any]


def _fit(rows: Array, wanted: Array, start: Array) -> LeastSquares:
    squares = LeastSquares(start[None], np.zeros((1, len(start))), 0.01)
    for number in range(len(rows)):
        squares.add(number * FOLDS // len(rows), rows[None, number : number + 1], wanted[None, number : number + 1])
    return squares


def test_few_rows_are_damped_until_they_serve_others_too() -> None:
    rng = np.random.default_rng(0)
    truth, noise = rng.normal(size=(5, 40)), rng.normal(size=(5, 40))
    rows = rng.normal(size=(48, 40))
    others = rng.normal(size=(400, 40))
    start = truth + 0.1 * noise
    wanted = rows @ truth.T + 2 * rng.normal(size=(48, 5))
    solution = _fit(rows, wanted, start).solve()
    plain = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    errors = [np.square(others @ (weight - truth).T).mean() for weight in (solution.weight[0], plain)]
    assert errors[0] < errors[1] / 4


def test_weights_that_predict_others_best_gain_nothing() -> None:
    rng = np.random.default_rng(1)
    truth, rows = rng.normal(size=(3, 20)), rng.normal(size=(24, 20))
    assert _fit(rows, rows @ truth.T + rng.normal(size=(24, 3)), truth).solve().gain <= 0.1
    assert _fit(rows, rows @ truth.T, truth).solve().gain <= 0


def test_enough_rows_find_the_weights() -> None:
    rng = np.random.default_rng(2)
    truth, rows = rng.normal(size=(3, 6)), rng.normal(size=(400, 6))
    solution = _fit(rows, rows @ truth.T + 1, np.zeros((3, 6))).solve()
    assert solution.gain > 0.99 and solution.bias is not None
    assert np.allclose(solution.weight[0], truth, atol=0.1) and np.allclose(solution.bias, 1, atol=0.1)


def test_one_sample_alone_judges_nothing() -> None:
    rows = np.random.default_rng(3).normal(size=(1, 6))
    assert _fit(rows, np.ones((1, 2)), np.zeros((2, 6))).solve().gain == 0
