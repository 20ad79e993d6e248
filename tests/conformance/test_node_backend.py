"""Guards what the onnx package's node tests give on the host: no wrong answer, no crash, nothing newly refused.

`numbers.json` beside this file records the outcome; after a change for the better rewrite it by
`python -m tests.conformance.node_suite --record`. The operators' definitions ("…_expanded", the same computation in
simpler operators) are left to the test marked long: the rest already lowers each operator by itself.
"""

from __future__ import annotations

import json
from typing import Any

import onnx
import pytest

from tests.conformance import node_suite
from tests.conformance.node_suite import Outcome

RECORD = json.loads(node_suite.NUMBERS.read_text(encoding="utf-8"))
SAME_VERSION = onnx.__version__ == RECORD["onnx"]
CHUNKS = 30


def part(number: int, *, expanded: bool) -> list[Any]:
    """The tests of one of CHUNKS parts, which are alike in their mix of operators."""
    return [case for case in node_suite.cases() if case.name.endswith("_expanded") == expanded][number::CHUNKS]


def assert_as_recorded(outcomes: list[Outcome]) -> None:
    faults = [outcome for outcome in outcomes if outcome.status in ("wrong", "crashed")]
    assert not faults
    if SAME_VERSION:  # another version has other tests
        refused = {outcome.test: outcome.detail for outcome in outcomes if outcome.status == "refused"}
        newly = {test: reason for test, reason in refused.items() if test not in RECORD["refused"]}
        assert not newly
        unrecorded = [o.test for o in outcomes if o.status != "refused" and o.test in RECORD["refused"]]
        assert not unrecorded, "these pass now: record it by python -m tests.conformance.node_suite --record"


@pytest.mark.parametrize("number", range(CHUNKS))
def test_operators_give_what_the_standard_says_or_are_refused(number: int) -> None:
    assert_as_recorded(list(node_suite.run_suite(part(number, expanded=False))))


@pytest.mark.long
@pytest.mark.parametrize("number", range(CHUNKS))
def test_definitions_of_operators_give_what_the_standard_says(number: int) -> None:
    assert_as_recorded(list(node_suite.run_suite(part(number, expanded=True))))


def test_the_record_is_of_whole_runs() -> None:
    counts = RECORD["counts"]
    assert counts["wrong"] == counts["crashed"] == 0
    assert counts["refused"] == len(RECORD["refused"])
    if SAME_VERSION:
        assert sum(counts.values()) == len(node_suite.cases())


def test_a_wrong_answer_does_not_pass() -> None:
    """The guard can fail: outcomes are told apart, and a recorded number is compared."""
    with pytest.raises(AssertionError):
        assert_as_recorded([Outcome("test_relu", "wrong", "y: differs by 1")])
    with pytest.raises(AssertionError):
        assert_as_recorded([Outcome("test_relu", "crashed", "TypeError")])
    assert_as_recorded([Outcome("test_relu", "passed")])


def test_a_difference_beyond_the_tolerance_is_seen() -> None:
    case = next(case for case in node_suite.cases() if case.name == "test_relu")
    _, expected = node_suite._data(case)
    right = expected[0]["y"]
    assert not node_suite._difference(right, right, case)
    assert node_suite._difference(right * 1.01, right, case)
    assert node_suite._difference(right[:1], right, case)
