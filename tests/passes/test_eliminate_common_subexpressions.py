from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from graphopt.passes.cleanup.eliminate_common_subexpressions import EliminateCommonSubexpressions
from tests.passes import random_graphs as steps
from tests.passes.harness import Outcome, check, parse

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def test_equal_nodes_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        HEADER + "g (float[2] x) => (float[2] y) "
        "{ a = Add(x, w) b = Add(v, x) c = LeakyRelu <alpha = 0.5> (a) d = LeakyRelu <alpha = 0.5> (b) y = Mul(c, d) }",
        w=np.array([1, 2], np.float32),
        v=np.array([1, 2], np.float32),
    )
    outcome = check(EliminateCommonSubexpressions(), model)
    golden("chain", outcome)
    assert outcome.operators() == ["Add", "LeakyRelu", "Mul"]
    assert outcome.result.statistics == {"nodes": 2, "initializers": 1}


DIFFERENT = {
    "attribute": "a = LeakyRelu <alpha = 0.5> (x) b = LeakyRelu <alpha = 0.25> (x) y = Sub(a, b)",
    "sign of zero in an attribute": "a = LeakyRelu <alpha = 0.0> (x) b = LeakyRelu <alpha = -0.0> (x) y = Sub(a, b)",
    "default and given attribute": "a = LeakyRelu (x) b = LeakyRelu <alpha = 0.5> (x) y = Sub(a, b)",
    "order of operands": "a = Sub(x, w) b = Sub(w, x) y = Mul(a, b)",
    "constants": "a = Mul(x, w) b = Mul(x, v) y = Sub(a, b)",
    "sign of zero in a constant": "a = Mul(x, z) b = Mul(x, n) y = Sub(a, b)",
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_different_nodes_stay(case: str) -> None:
    arrays = {"w": [1.0, 2.0], "v": [2.0, 1.0], "z": [0.0, 0.0], "n": [-0.0, -0.0]}
    weights = {name: np.array(array, np.float32) for name, array in arrays.items()}
    model = parse(f"{HEADER} g (float[2] x) => (float[2] y) {{ {DIFFERENT[case]} }}", **weights)
    check(EliminateCommonSubexpressions(), model, changes=False)


RANDOM = {
    "RandomNormalLike": "a = RandomNormalLike(x) b = RandomNormalLike(x)",
    "RandomNormal": "a = RandomNormal <shape = [2]> () b = RandomNormal <shape = [2]> ()",
    "Bernoulli": "a = Bernoulli(x) b = Bernoulli(x)",
    "Dropout in training": "a = Dropout(x, r, t) b = Dropout(x, r, t)",
    "custom operators": "a = my.domain.Source(x) b = my.domain.Source(x)",
}


@pytest.mark.parametrize("case", RANDOM)
def test_random_and_unknown_operators_are_never_merged(case: str) -> None:
    model = parse(
        '<ir_version: 8, opset_import: ["" : 17, "my.domain" : 1]> '
        f"g (float[2] x) => (float[2] y) {{ {RANDOM[case]} y = Sub(a, b) }}",
        r=np.array(0.5, np.float32),
        t=np.array(True),
    )
    before = [node.op_type for node in model.graph]
    assert not EliminateCommonSubexpressions().run(model, steps.CONTEXT).changed
    assert [node.op_type for node in model.graph] == before


def test_outputs_of_the_graph_keep_their_names_and_other_readers_share() -> None:
    model = parse(
        HEADER + "g (float[2] x) => (float[2] y, float[2] z, float[2] u, float[2] v) "
        "{ y = Relu(x) z = Relu(x) u = Neg(y) v = Abs(z) w = Neg(z) }"
    )
    outcome = check(EliminateCommonSubexpressions(), model)
    assert outcome.operators() == ["Relu", "Relu", "Neg", "Abs"]
    assert outcome.after.graph[3].inputs[0] is outcome.after.graph[0].outputs[0]


def test_initializers_of_one_content_but_other_type_or_shape_stay() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Add(x, w) b = Reshape(a, s) c = Reshape(b, t) y = Mul(c, v) }"
    weights = {
        "w": np.zeros((1, 2), np.float32),
        "v": np.zeros(2, np.float32),
        "s": np.array([1, 2]),
        "t": np.array([2]),
    }
    check(EliminateCommonSubexpressions(), parse(HEADER + text, **weights), changes=False)


def test_branches_use_what_was_computed_before_them_and_not_each_other() -> None:
    model = parse(
        HEADER
        + """g (float[2] x, bool c) => (float[2] y) {
            a = Relu(x)
            b = If (c) <
                then_branch = t () => (float[2] p) { q = Relu(x) m = Neg(x) n = Mul(q, m) p = Abs(n) },
                else_branch = e () => (float[2] r) { s = Neg(x) r = Abs(s) }
            >
            y = Mul(a, b)
        }"""
    )
    outcome = check(EliminateCommonSubexpressions(), model, feeds={"x": np.ones(2, np.float32), "c": np.array(True)})
    operators = {graph.name: [node.op_type for node in graph] for graph in outcome.after.graph.subgraphs()}
    assert operators == {"t": ["Neg", "Mul", "Abs"], "e": ["Neg", "Abs"]}


@settings(deadline=None, max_examples=60)
@given(steps.models(steps.unary, steps.same_again, steps.pair, steps.with_constant, steps.halves, steps.reduce))
def test_random_graphs_keep_their_outputs(model: ir.Model) -> None:
    check(EliminateCommonSubexpressions(), model, changes=None)
