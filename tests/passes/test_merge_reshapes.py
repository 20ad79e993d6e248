from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from graphopt.passes.cleanup.merge_reshapes import MergeReshapes
from tests.passes import random_graphs as steps
from tests.passes.harness import Outcome, check, parse


def header(opset: int = 17) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>'


def test_chain_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        header() + "g (float[2,3,4] x) => (float[6,4] y) { a = Relu(x) b = Unsqueeze(a, z) c = Flatten <axis = 2> (b) "
        "d = Reshape(c, s) e = Neg(d) y = Flatten <axis = 1> (e) }",
        z=np.array([0]),
        s=np.array([6, 2, 2]),
    )
    outcome = check(MergeReshapes(), model)
    golden("chain", outcome)
    assert outcome.operators() == ["Relu", "Reshape", "Neg", "Flatten"]


def test_a_chain_back_to_the_first_shape_vanishes() -> None:
    model = parse(
        header(11) + "g (float[2,3] x) => (float[2,3] y) "
        "{ a = Relu(x) b = Unsqueeze <axes = [1]> (a) c = Squeeze <axes = [1]> (b) y = Neg(c) }"
    )
    outcome = check(MergeReshapes(), model)
    assert outcome.operators() == ["Relu", "Neg"]


@pytest.mark.parametrize(
    ("node", "shape", "out"),
    [
        ("b = Transpose <perm = [0, 2, 3, 1]> (a)", "5,2,1,1", "5,1,1,2"),
        ("b = Gather <axis = 1> (a, i)", "2,1,3", "2,3"),
        ("b = ReduceMean <axes = [1], keepdims = 0> (a)", "2,1,3", "2,3"),
    ],
)
def test_what_amounts_to_a_reshape_becomes_one(node: str, shape: str, out: str) -> None:
    text = f"g (float[{shape}] x) => (float[{out}] y) {{ a = Relu(x) {node} y = Neg(b) }}"
    outcome = check(MergeReshapes(), parse(header() + text, i=np.array(0)))
    assert outcome.operators() == ["Relu", "Reshape", "Neg"]
    assert outcome.result.statistics == {"merged": 0, "turned-into-reshape": 1}


@pytest.mark.parametrize(
    "node",
    [
        "b = Transpose <perm = [1, 0]> (a)",
        "b = Gather <axis = 0> (a, i)",
        "b = ReduceMean <axes = [1], keepdims = 0> (a)",
        "b = Unsqueeze(a, j)",
    ],
)
def test_other_operators_and_lone_reshapes_stay(node: str) -> None:
    shape = {"T": "3,2", "G": "3", "R": "2", "U": "1,2,3"}[node[4]]
    text = f"g (float[2,3] x) => (float[{shape}] y) {{ a = Relu(x) {node} y = Neg(b) }}"
    check(MergeReshapes(), parse(header() + text, i=np.array(0), j=np.array([0])), changes=False)


def test_one_unknown_dimension_is_written_as_minus_one() -> None:
    model = parse(
        header()
        + "g (float[N,4,3] x) => (float[M,12] y) { a = Relu(x) b = Reshape(a, s) c = Squeeze(b, z) y = Neg(c) }",
        s=np.array([0, 1, 12]),
        z=np.array([1]),
    )
    outcome = check(MergeReshapes(), model, feeds={"x": np.ones((5, 4, 3), np.float32)})
    assert outcome.operators() == ["Relu", "Reshape", "Neg"]
    target = outcome.after.graph[1].inputs[1]
    assert target is not None
    assert target.const_value is not None
    assert target.const_value.numpy().tolist() == [-1, 12]


def test_two_unknown_dimensions_decline() -> None:
    model = parse(
        header()
        + "g (float[N,M,3] x) => (float[N,M,1,3] y) { a = Unsqueeze(x, i) b = Unsqueeze(a, i) y = Squeeze(b, i) }",
        i=np.array([2]),
    )
    outcome = check(MergeReshapes(), model, feeds={"x": np.ones((2, 2, 3), np.float32)}, changes=False)
    assert "more than one unknown dimension" in outcome.reasons()["squeeze_2"]


def test_from_input_to_output_one_reshape_is_left() -> None:
    model = parse(
        header() + "g (float[2,3] x) => (float[2,3] y) { a = Unsqueeze(x, i) y = Squeeze(a, i) }", i=np.array([0])
    )
    outcome = check(MergeReshapes(), model)
    assert outcome.operators() == ["Reshape"]


@settings(deadline=None, max_examples=60)
@given(
    steps.models(
        steps.reshape, steps.squeeze, steps.unsqueeze, steps.flatten, steps.transpose, steps.reduce, steps.unary
    )
)
def test_random_graphs_keep_their_outputs(model: ir.Model) -> None:
    check(MergeReshapes(), model, changes=None)
