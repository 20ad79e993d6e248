"""Refitting gains on rows that it was not fitted to, or it is declined."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.passes.factorize.low_rank import directions
from graphopt.passes.prune.least_squares import FOLDS, LeastSquares, shrunk

Array = np.ndarray[Any, Any]


def _fit(rows: Array, wanted: Array, start: Array, standing: Array | None = None) -> LeastSquares:
    kept = None if standing is None else standing[None]
    squares = LeastSquares(start[None], np.zeros((1, len(start))), 0.01, kept)
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


def test_what_a_bias_sets_right_keeps_its_weights() -> None:
    rng = np.random.default_rng(9)
    truth, rows = rng.normal(size=(3, 6)), rng.normal(size=(400, 6))
    truth[1] = 0  # a channel that never changes
    start = truth + np.array([[0.1], [0], [0]])
    solution = _fit(rows, rows @ truth.T + np.arange(3), start).solve()
    assert solution.gain > 0 and solution.bias is not None
    assert np.array_equal(solution.weight[0, 1:], start[1:]) and not np.array_equal(solution.weight[0, 0], start[0])
    assert np.allclose(solution.bias, [0, 1, 2], atol=0.01)


def test_one_sample_alone_judges_nothing() -> None:
    rows = np.random.default_rng(3).normal(size=(1, 6))
    assert _fit(rows, np.ones((1, 2)), np.zeros((2, 6))).solve().gain == 0


def _rank_three(matrix: Array, covariance: Array) -> Array:
    return directions(matrix[0], covariance[0]).projected(matrix[0], 3)[None]


def test_a_constrained_fit_is_of_its_kind_and_gains_over_what_would_stay() -> None:
    rng = np.random.default_rng(4)
    mixing = rng.normal(size=(20, 20)) * np.geomspace(1, 0.05, 20)
    truth, rows = rng.normal(size=(8, 20)), rng.normal(size=(600, 20)) @ mixing.T
    plain = directions(truth, None).projected(truth, 3)
    solution = _fit(rows, rows @ truth.T, truth, plain).solve(_rank_three)
    assert np.linalg.matrix_rank(solution.weight[0], 1e-6) == 3 and solution.gain > 0.2
    others = rng.normal(size=(600, 20)) @ mixing.T
    errors = [np.square(others @ (weight - truth).T).mean() for weight in (solution.weight[0], plain)]
    assert errors[0] < (1 - 0.5 * solution.gain) * errors[1]


def test_a_constrained_fit_to_noise_gains_nothing() -> None:
    rng = np.random.default_rng(5)
    truth, rows = rng.normal(size=(8, 3)) @ rng.normal(size=(3, 20)), rng.normal(size=(24, 20))
    assert _fit(rows, rows @ truth.T, truth, truth).solve(_rank_three).gain <= 0


def test_a_covariance_is_shrunk_as_far_as_few_rows_misjudge_it() -> None:
    rng = np.random.default_rng(6)
    mixing = rng.normal(size=(40, 40)) * np.geomspace(1, 0.02, 40)
    truth = mixing @ mixing.T
    errors = {}
    for count in (20, 100, 20000):
        rows = rng.normal(size=(count, 40)) @ mixing.T
        known = rows.T @ rows / count
        found = shrunk(known, count)
        assert np.isclose(np.trace(found), np.trace(known)) and np.linalg.eigvalsh(found).min() > 0
        errors[count] = [np.square(each - truth).sum() for each in (found, known)]
    assert errors[20][0] < 0.8 * errors[20][1] and errors[20000][0] < 1.05 * errors[20000][1]
    assert np.allclose(shrunk(np.eye(5), 10), np.eye(5)) and not shrunk(np.zeros((5, 5)), 10).any()
