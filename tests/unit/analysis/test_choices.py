"""Indices of a largest score are judged by the scores that they choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphopt.analysis.choices import Choice, choices, judge_all
from graphopt.analysis.comparison import OutputComparison, compare

SCORES = np.array([[[0.0, 4.0], [1.0, 4.0 + 2**-18], [-4.0, 3.0]]], np.float32)  # column 1: nearly a tie


def judged(found: Any, choice: Choice, scores: np.ndarray[Any, Any] = SCORES) -> OutputComparison:
    best = scores.argmax(choice.axis, keepdims=choice.keeps_axis)
    expected, candidate = {choice.output: best, choice.scores: scores}, {choice.output: np.asarray(found)}
    outputs = compare({choice.output: best}, candidate)
    (output,) = judge_all(outputs, [choice], [expected], [candidate])
    return output


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("axis", [1, -2])
def test_the_other_index_of_a_tie_costs_what_the_scores_differ_by(keeps: bool, axis: int) -> None:
    found = np.expand_dims([[1, 0]], 1) if keeps else [[1, 0]]
    output = judged(found, Choice("index", "scores", axis, keeps))
    assert output.relative == pytest.approx(2**-21)
    assert output.max_abs == 1
    assert output.note == "1 of 2 indices differ; their scores, by 4.8e-07 of the scores' range"


def test_a_wrong_index_costs_what_its_score_is_worse_by() -> None:
    assert judged([[2, 1]], Choice("index", "scores", 1, False)).relative == pytest.approx(5 / 8)


def test_equal_indices_are_left_as_compared() -> None:
    output = judged([[1, 1]], Choice("index", "scores", 1, False))
    assert (output.relative, output.note) == (0.0, "")


@pytest.mark.parametrize("found", [[[1, 3]], [[1, -1]], [[1]]])
def test_what_is_no_index_stays_as_compared(found: Any) -> None:
    plain = compare({"index": np.array([[1, 1]])}, {"index": np.asarray(found)})
    assert judged(found, Choice("index", "scores", 1, False)) == plain[0]
    assert plain[0].relative > 0


def test_scores_that_are_not_a_number_are_no_excuse() -> None:
    scores = SCORES.copy()
    scores[0, 0, 1] = np.nan
    assert judged([[1, 1]], Choice("index", "scores", 1, False), scores).relative == 1.0


def test_choices_are_found_with_their_scores_and_axis() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["positive"]),
            helper.make_node("ArgMax", ["positive"], ["largest"], axis=1, keepdims=0),
            helper.make_node("ArgMin", ["x"], ["smallest"]),
            helper.make_node("ArgMax", ["x"], ["inner"]),
            helper.make_node("Identity", ["inner"], ["copy"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in ("largest", "smallest", "copy")],
    )
    model: onnx.ModelProto = helper.make_model(graph)
    assert choices(ir.from_proto(model)) == (
        Choice("largest", "positive", 1, False),
        Choice("smallest", "x", 0, True),
    )
