from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from graphopt.passes.cleanup.eliminate_dead_code import EliminateDeadCode
from tests.passes import random_graphs as steps
from tests.passes.harness import Outcome, check, parse

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def test_dead_code_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        HEADER + "g (float[2] x, float[2] unused) => (float[2] y) { a = Relu(x) b = Add(a, w) c = Neg(b) y = Neg(a) }",
        w=np.ones(2, np.float32),
        v=np.ones(2, np.float32),
    )
    outcome = check(EliminateDeadCode(), model)
    golden("chain", outcome)
    assert outcome.operators() == ["Relu", "Neg"]
    assert not outcome.after.graph.initializers
    assert [value.name for value in outcome.after.graph.inputs] == ["x", "unused"]
    assert outcome.result.statistics == {"nodes": 2, "outputs": 0, "initializers": 2, "functions": 0}


def test_a_graph_without_dead_code_is_left_alone() -> None:
    model = parse(HEADER + "g (float[2] x) => (float[2] y) { y = Add(x, w) }", w=np.ones(2, np.float32))
    check(EliminateDeadCode(), model, changes=False)


def test_unused_optional_outputs_are_dropped() -> None:
    model = parse(
        HEADER + "g (float[1,1,4,4] x) => (float[1,1,2,2] y) "
        "{ a, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) y = Relu(a) }"
    )
    outcome = check(EliminateDeadCode(), model)
    assert len(outcome.after.graph[0].outputs) == 1
    assert outcome.result.statistics["outputs"] == 1


def test_an_unused_output_before_a_used_one_is_left_out() -> None:
    model = parse(
        HEADER + "g (float[3,1,2] x) => (float[1,1,4] h) { s, h, c = LSTM <hidden_size = 4> (x, w, r) }",
        w=np.ones((1, 16, 2), np.float32),
        r=np.ones((1, 16, 4), np.float32),
    )
    outcome = check(EliminateDeadCode(), model)
    assert [output.name for output in outcome.after.graph[0].outputs] == ["", "h"]


@pytest.mark.parametrize("opset", [9, 13])
def test_outputs_that_choose_training_of_batch_norm_stay(opset: int) -> None:
    model = parse(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[1,2,2] x) => (float[1,2,2] y) '
        "{ y = BatchNormalization(x, s, b, m, v) }",
        **{name: np.ones(2, np.float32) for name in "sbmv"},
    )
    check(EliminateDeadCode(), model, changes=False)


def test_subgraphs_lose_dead_nodes_and_initializers() -> None:
    model = parse(
        HEADER
        + """g (float[2] x, bool c) => (float[2] y) {
            a = Relu(x)
            b = Neg(x)
            y = If (c) <
                then_branch = t () => (float[2] p) <float[2] w = {1, 2}> { q = Add(b, w) p = Neg(x) },
                else_branch = e () => (float[2] r) { r = Neg(a) }
            >
        }"""
    )
    feeds = {"x": np.ones(2, np.float32), "c": np.array(False)}
    outcome = check(EliminateDeadCode(), model, feeds=feeds)
    assert outcome.operators() == ["Relu", "If"]  # b was used by the dead node of the branch alone
    then = next(graph for graph in outcome.after.graph.subgraphs() if graph.name == "t")
    assert [node.op_type for node in then] == ["Neg"]
    assert not then.initializers


def test_imports_of_unused_operator_sets_go() -> None:
    model = parse(
        '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    outcome = check(EliminateDeadCode(), model, changes=None)
    assert outcome.after.opset_imports == {"": 17}


@settings(deadline=None, max_examples=40)
@given(steps.models(steps.unary, steps.pair, steps.with_constant, steps.halves, steps.reshape))
def test_random_graphs_keep_their_outputs(model: ir.Model) -> None:
    check(EliminateDeadCode(), model, changes=None)
