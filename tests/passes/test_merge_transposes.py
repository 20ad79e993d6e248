from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.cleanup.merge_transposes import MergeTransposes, compose, inverse
from tests.passes import random_graphs as steps
from tests.passes.harness import Outcome, check, parse

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def test_chain_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        HEADER + "g (float[2,3,4] x) => (float[3,2,4] y) "
        "{ a = Transpose <perm = [1, 2, 0]> (x) b = Transpose(a) c = Transpose <perm = [2, 0, 1]> (b) y = Relu(c) }"
    )
    outcome = check(MergeTransposes(), model)
    golden("chain", outcome)
    assert outcome.operators() == ["Transpose", "Relu"]


def test_pairs_cancel_up_to_the_output() -> None:
    model = parse(
        HEADER + "g (float[2,3,4] x) => (float[2,3,4] y) "
        "{ a = Relu(x) b = Transpose <perm = [0, 2, 1]> (a) y = Transpose <perm = [0, 2, 1]> (b) }"
    )
    outcome = check(MergeTransposes(), model)
    assert outcome.operators() == ["Relu"]


def test_the_first_stays_for_its_other_readers() -> None:
    model = parse(
        HEADER + "g (float[2,3,4] x) => (float[4,3,2] y, float[2,4,3] z) "
        "{ a = Transpose(x) b = Transpose <perm = [2, 0, 1]> (a) y = Relu(a) z = Neg(b) }"
    )
    outcome = check(MergeTransposes(), model)
    assert outcome.operators() == ["Transpose", "Transpose", "Relu", "Neg"]
    assert outcome.after.graph[1].inputs[0] is outcome.after.graph.inputs[0]


def test_an_operator_between_two_transposes_keeps_both() -> None:
    model = parse(HEADER + "g (float[2,3] x) => (float[2,3] y) { a = Transpose(x) b = Relu(a) y = Transpose(b) }")
    check(MergeTransposes(), model, changes=False)


@given(st.permutations(range(4)), st.permutations(range(4)))
def test_compose_and_inverse_are_what_numpy_does(first: list[int], second: list[int]) -> None:
    array = np.arange(120).reshape(2, 3, 4, 5)
    np.testing.assert_array_equal(array.transpose(first).transpose(second), array.transpose(compose(first, second)))
    assert compose(first, inverse(first)) == (0, 1, 2, 3)


@settings(deadline=None, max_examples=40)
@given(steps.models(steps.transpose, steps.transpose, steps.unary))
def test_random_graphs_keep_their_outputs(model: ir.Model) -> None:
    check(MergeTransposes(), model, changes=None)
