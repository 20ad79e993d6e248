"""Differences of outputs, against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.analysis.comparison import OutputComparison, compare, compare_runs

floats = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=st.floats(width=32))


def one(reference: Any, candidate: Any) -> OutputComparison:
    (output,) = compare({"y": np.asarray(reference)}, {"y": np.asarray(candidate)})
    return output


def test_the_numbers_of_a_small_example() -> None:
    found = one([[3.0, -1.0], [0.0, 2.0]], [[3.0, -1.0], [0.0, 1.5]])
    assert found.max_abs == 0.5
    assert found.relative == 0.5 / 4
    assert found.sqnr_db == pytest.approx(10 * math.log10(14 / 0.25))
    assert found.top1_agreement == 1.0
    assert found.note == ""


def test_zero_belongs_to_the_range() -> None:
    assert one([[0.5, 0.5001]], [[0.5, 0.5]]).relative == pytest.approx(0.0001 / 0.5001)
    assert one([[-2.0, -2.0]], [[-1.0, -2.0]]).relative == 0.5


def test_any_difference_from_zeros_is_infinitely_large() -> None:
    found = one([[0.0, 0.0]], [[0.0, 1e-9]])
    assert (found.relative, found.sqnr_db) == (math.inf, -math.inf)


@settings(deadline=None)  # the machine may be busy
@given(floats)
def test_equal_outputs_do_not_differ_wherever_they_are_not_finite(array: np.ndarray[Any, Any]) -> None:
    found = one(array, array.copy())
    assert (found.max_abs, found.relative, found.sqnr_db, found.note) == (0.0, 0.0, math.inf, "")


@settings(deadline=None)  # the machine may be busy
@given(floats, st.integers(0, 2**32), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_nan_and_infinity_on_one_side_are_a_difference(array: np.ndarray[Any, Any], at: int, value: float) -> None:
    other = array.copy()
    other.flat[at % array.size] = value
    same = np.array_equal(array, other, equal_nan=True)
    assert one(array, other).relative == (0.0 if same else math.inf)
    assert bool(one(other, array).note) != same


def test_infinities_of_one_sign_are_equal_and_leave_the_other_numbers_measured() -> None:
    found = one([math.inf, math.nan, 4.0], [math.inf, math.nan, 3.0])
    assert (found.max_abs, found.relative) == (1.0, 0.25)


def test_integers_are_measured_and_booleans_and_strings_are_equal_or_not() -> None:
    assert one(np.array([0, 10]), np.array([0, 9])).relative == 0.1
    assert one(np.array([250, 0], np.uint8), np.array([0, 0], np.uint8)).max_abs == 250
    assert one([True, False], [True, True]).note == "1 of 2 values differ"
    assert one(np.array(["a", "b"], object), np.array(["a", "b"], object)).relative == 0.0
    assert one(np.array(["a", "b"], object), np.array(["a", "c"], object)).relative == math.inf


def test_types_that_numpy_lacks_and_complex_numbers_are_measured() -> None:
    narrow = np.array([1.0, 2.0], ml_dtypes.bfloat16)
    assert one(narrow, np.array([1.0, 1.0], ml_dtypes.bfloat16)).relative == 0.5
    assert one(np.array([2j]), np.array([1j])).relative == 0.5


def test_another_shape_type_or_name_is_a_difference_without_measure() -> None:
    assert one(np.zeros((1, 2)), np.zeros((2, 1))).note == "shape [2, 1] instead of [1, 2]"
    assert one(np.zeros(1), np.array([False])).note == "type bool instead of float64"
    found = compare({"a": np.zeros(1)}, {"b": np.zeros(1)})
    assert [(output.name, output.note) for output in found] == [
        ("a", "missing in the candidate"),
        ("b", "missing in the reference"),
    ]
    assert all(output.relative == math.inf for output in found)


def test_an_empty_output_is_equal() -> None:
    assert one(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).relative == 0.0


@pytest.mark.parametrize(
    ("shape", "dtype", "applies"),
    [
        ((4, 10), np.float32, True),
        ((4, 1, 10), np.float16, True),
        ((4, 1), np.float32, False),
        ((10,), np.float32, False),
        ((4, 8, 8, 10), np.float32, False),
        ((4, 10), np.int64, False),
    ],
)
def test_top1_agreement_is_given_where_the_last_axis_looks_like_scores(
    shape: tuple[int, ...], dtype: type, applies: bool
) -> None:
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    assert (one(array, array).top1_agreement == 1.0) == applies
    assert (one(array, array).top1_agreement is None) != applies


def test_top1_agreement_counts_samples() -> None:
    scores = np.eye(4, dtype=np.float32)
    other = scores.copy()
    other[0] = scores[1]
    assert one(scores, other).top1_agreement == 0.75


def test_several_runs_count_as_one() -> None:
    reference = [{"y": np.array([[1.0, 0.0]])}, {"y": np.array([[0.0, 4.0]])}]
    candidate = [{"y": np.array([[1.0, 0.0]])}, {"y": np.array([[3.0, 2.0]])}]
    (output,) = compare_runs(reference, candidate)
    assert (output.max_abs, output.relative, output.top1_agreement) == (3.0, 0.75, 0.5)
    with pytest.raises(ValueError, match="2 runs against 1"):
        compare_runs(reference, candidate[:1])


def test_outputs_whose_shape_depends_on_the_data_are_compared_run_by_run() -> None:
    reference = [{"y": np.zeros(2)}, {"y": np.zeros(3)}]
    assert [output.relative for output in compare_runs(reference, reference)] == [0.0, 0.0]
    shorter = [{"y": np.zeros(2)}, {"y": np.zeros(2)}]
    assert {output.name: output.note for output in compare_runs(reference, shorter)} == {
        "y (sample 0)": "",
        "y (sample 1)": "shape [2] instead of [3]",
    }
