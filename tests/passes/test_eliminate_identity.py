from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from graphopt.passes.cleanup.eliminate_identity import EliminateIdentity
from tests.passes import random_graphs as steps
from tests.passes.harness import Outcome, check, parse

Array = npt.NDArray[Any]
ONE = np.array(1, np.float32)


def header(opset: int) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>'


def body(node: str, opset: int = 17, shape: str = "2,3", out: str = "2,3", **weights: Array) -> ir.Model:
    """Relu, then `node` from a to b, then Neg."""
    text = f"g (float[{shape}] x) => (float[{out}] y) {{ a = Relu(x) {node} y = Neg(b) }}"
    return parse(f"{header(opset)} {text}", **weights)


def test_identity_golden(golden: Callable[[str, Outcome], None]) -> None:
    outcome = check(EliminateIdentity(), body("b = Identity(a)"))
    golden("identity", outcome)
    assert outcome.result.statistics == {"removed-Identity": 1}


NEUTRAL = {
    "dropout-7": partial(body, "b = Dropout <ratio = 0.9> (a)", 7),
    "dropout-13": partial(body, "b = Dropout(a, r)", 13, r=np.array(0.9, np.float32)),
    "dropout-not-training": partial(body, "b = Dropout(a, , t)", 13, t=np.array(False)),
    "cast": partial(body, "b = Cast <to = 1> (a)"),
    "reshape": partial(body, "b = Reshape(a, s)", s=np.array([2, -1])),
    "reshape-zero": partial(body, "b = Reshape(a, s)", s=np.array([0, 0])),
    "flatten": partial(body, "b = Flatten <axis = 1> (a)"),
    "expand": partial(body, "b = Expand(a, s)", s=np.array([1, 3])),
    "transpose": partial(body, "b = Transpose <perm = [0, 1]> (a)"),
    "transpose-vector": partial(body, "b = Transpose(a)", shape="3", out="3"),
    "slice-9": partial(body, "b = Slice <starts = [0], ends = [9], axes = [1]> (a)", 9),
    "slice-10": partial(body, "b = Slice(a, z, e)", 11, z=np.array([0]), e=np.array([2])),
    "slice-dynamic": partial(
        body, "b = Slice(a, z, e)", shape="N,3", out="N,3", z=np.array([0]), e=np.array([2**63 - 1])
    ),
    "concat": partial(body, "b = Concat <axis = 0> (a)"),
    "sum": partial(body, "b = Sum(a)"),
    "split-11": partial(body, "b = Split <axis = 0> (a)", 11),
    "split-13": partial(body, "b = Split <axis = 0> (a, s)", 13, s=np.array([2])),
    "pad-9": partial(body, "b = Pad <pads = [0, 0, 0, 0]> (a)", 9),
    "pad-13": partial(body, 'b = Pad <mode = "reflect"> (a, p)', 13, p=np.zeros(4, np.int64)),
    "tile": partial(body, "b = Tile(a, t)", t=np.array([1, 1])),
    "gather": partial(body, "b = Gather <axis = 1> (a, i)", i=np.array([0, -2, 2])),
    "scatter-nd": partial(body, "b = ScatterND(c, i, a)", c=np.ones((2, 3), np.float32), i=np.array([[0], [1]])),
    "scatter-elements": partial(
        body,
        "b = ScatterElements <axis = 1> (c, i, a)",
        c=np.ones((2, 3), np.float32),
        i=np.array([[0, 1, 2], [0, 1, -1]]),
    ),
    "resize-10": partial(body, "b = Resize(a, s)", 10, s=np.ones(2, np.float32)),
    "resize-13": partial(body, 'b = Resize <mode = "linear"> (a, , s)', 13, s=np.ones(2, np.float32)),
    "resize-sizes": partial(body, 'b = Resize <mode = "linear"> (a, , , s)', 13, s=np.array([2, 3])),
    "upsample-7": partial(body, "b = Upsample <scales = [1.0, 1.0]> (a)", 7),
    "upsample-9": partial(body, "b = Upsample(a, s)", 9, s=np.ones(2, np.float32)),
    "reduce-11": partial(body, "b = ReduceMean <axes = [0]> (a)", 11, shape="1,3", out="1,3"),
    "reduce-18": partial(body, "b = ReduceMax(a, i)", 18, shape="1,3", out="1,3", i=np.array([0])),
    "reduce-nothing": partial(body, "b = ReduceSum <noop_with_empty_axes = 1> (a)", 13),
    "max-pool": partial(body, "b = MaxPool <kernel_shape = [1, 1]> (a)", shape="1,2,3,3", out="1,2,3,3"),
    "global-pool": partial(body, "b = GlobalAveragePool(a)", shape="1,2,1,1", out="1,2,1,1"),
    "add": partial(body, "b = Add(z, a)", z=np.zeros((1, 3), np.float32)),
    "sub": partial(body, "b = Sub(a, z)", z=np.zeros((), np.float32)),
    "mul": partial(body, "b = Mul(o, a)", o=np.ones((2, 1), np.float32)),
    "mul-dynamic": partial(body, "b = Mul(a, o)", shape="N,3", out="N,3", o=np.ones((1, 1), np.float32)),
    "div": partial(body, "b = Div(a, o)", o=ONE),
    "pow": partial(body, "b = Pow(a, o)", o=np.array(1, np.int32)),
    "where": partial(body, "b = Where(c, a, o)", c=np.array([True]), o=ONE),
    "relu-twice": partial(body, "b = Relu(a)"),
    "abs-of-relu": partial(body, "b = Abs(a)"),
    "neg-twice": partial(body, "c = Neg(a) b = Neg(c)"),
}


@pytest.mark.parametrize("case", NEUTRAL)
def test_a_neutral_node_is_removed(case: str) -> None:
    outcome = check(EliminateIdentity(), NEUTRAL[case]())
    assert len(outcome.before.graph) == len(outcome.after.graph) + 1


NOT_NEUTRAL = {
    "cast to another type": partial(body, "c = Cast <to = 6> (a) b = Cast <to = 1> (c)"),
    "reversed": partial(
        body, "b = Slice(a, s, e, d, t)", s=np.array([-1]), e=np.array([-9]), d=np.array([1]), t=np.array([-1])
    ),
    "permuted": partial(body, "b = Transpose <perm = [1, 0]> (a)", shape="2,2", out="2,2"),
    "indices in another order": partial(body, "b = Gather <axis = 1> (a, i)", i=np.array([0, 2, 1])),
    "scattered in another order": partial(
        body, "b = ScatterND(c, i, a)", c=np.ones((2, 3), np.float32), i=np.array([[1], [0]])
    ),
    "scattered and added": partial(
        body, 'b = ScatterND <reduction = "add"> (c, i, a)', c=np.ones((2, 3), np.float32), i=np.array([[0], [1]])
    ),
    "almost one": partial(body, "b = Mul(a, o)", o=np.array(1 + 2**-20, np.float32)),
    "almost zero": partial(body, "b = Add(a, o)", o=np.array(1e-7, np.float32)),
    "ones that broadcast": partial(body, "b = Mul(a, o)", out="2,2,3", o=np.ones((2, 1, 1), np.float32)),
    "ones that may broadcast": partial(body, "b = Mul(a, o)", shape="N,3", out="M,3", o=np.ones((4, 1), np.float32)),
    "one divided": partial(body, "b = Div(o, a)", o=ONE),
    "power of one": partial(body, "b = Pow(o, a)", o=ONE),
    "zero minus": partial(body, "b = Sub(z, a)", z=np.array(0, np.float32)),
    "scale that rounds away": partial(body, "b = Resize(a, , s)", 13, s=np.array([1, 1.1], np.float32)),
    "mean of three": partial(body, "b = ReduceMean <axes = [1], keepdims = 1> (a)", out="2,1"),
    "strided pool": partial(body, "b = MaxPool <kernel_shape = [1], strides = [2]> (a)", shape="1,2,4", out="1,2,2"),
    "condition that varies": partial(body, "b = Where(c, a, o)", c=np.array([True, False, True]), o=ONE),
}


@pytest.mark.parametrize("case", NOT_NEUTRAL)
def test_what_only_looks_neutral_stays(case: str) -> None:
    check(EliminateIdentity(), NOT_NEUTRAL[case](), changes=False)


DECLINED = {
    "is in training mode": partial(body, "b = Dropout(a, r, t)", 13, r=np.array(0.0, np.float32), t=np.array(True)),
    "output 'm' is used as well": partial(
        parse, header(13) + "g (float[2] x) => (float[2] y, bool[2] n) { y, m = Dropout(x) n = Not(m) }"
    ),
    "samples between the elements": partial(
        body,
        'b = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (a, r, s)',
        13,
        r=np.array([0, 0, 1, 1], np.float32),
        s=np.ones(2, np.float32),
    ),
    "named by the graph's interface": partial(parse, header(17) + "g (float[2] x) => (float[2] y) { y = Identity(x) }"),
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declined_nodes_give_their_reason(reason: str) -> None:
    outcome = check(EliminateIdentity(), DECLINED[reason](), changes=False)
    (found,) = outcome.reasons().values()
    assert reason in found


def test_training_mode_known_only_at_run_time_declines() -> None:
    model = parse(header(13) + "g (float[2] x, bool t) => (float[2] y) { a = Relu(x) b = Dropout(a, , t) y = Neg(b) }")
    feeds = {"x": np.ones(2, np.float32), "t": np.array(False)}
    outcome = check(EliminateIdentity(), model, feeds=feeds, changes=False)
    assert "known only at run time" in outcome.reasons()["dropout_1"]


def test_adding_zero_stays_where_the_sign_of_zero_shows() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Neg(x) b = Add(a, z) c = Relu(b) y = Div(o, c) }"
    model = parse(header(17) + text, z=np.array([0, 0], np.float32), o=ONE)
    outcome = check(EliminateIdentity(), model, feeds={"x": np.array([0, -2], np.float32)}, changes=False)
    assert "turns -0 into 0, and Div 'div_3' tells them apart" in outcome.reasons()["add_1"]


def test_subtracting_zero_goes_even_where_the_sign_of_zero_shows() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Neg(x) b = Sub(a, z) y = Div(o, b) }"
    model = parse(header(17) + text, z=np.array([0, 0], np.float32), o=ONE)
    outcome = check(EliminateIdentity(), model, feeds={"x": np.array([0, -2], np.float32)})
    assert outcome.operators() == ["Neg", "Div"]


def test_the_output_keeps_its_name_and_the_declared_shape() -> None:
    model = parse(header(17) + "g (float[N,2] x) => (float[M,2] y) { a = Relu(x) b = Identity(a) y = Identity(b) }")
    outcome = check(EliminateIdentity(), model, feeds={"x": np.ones((3, 2), np.float32)})
    assert outcome.operators() == ["Relu"]
    assert [value.name for value in outcome.after.graph.outputs] == ["y"]


def test_two_outputs_of_one_value_keep_both_names() -> None:
    model = parse(header(17) + "g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Identity(y) }")
    check(EliminateIdentity(), model, changes=False)


def test_subgraphs_are_cleaned_and_keep_captured_outputs() -> None:
    model = parse(
        header(17)
        + """g (float[2] x, bool c) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] p) { q = Neg(x) p = Identity(q) },
                else_branch = e () => (float[2] r) { r = Identity(x) }
            >
        }"""
    )
    outcome = check(EliminateIdentity(), model, feeds={"x": np.ones(2, np.float32), "c": np.array(True)})
    counts = {graph.name: [node.op_type for node in graph] for graph in outcome.after.graph.subgraphs()}
    assert counts["t"] == ["Neg"]
    assert counts["e"] == ["Identity"]


MENU = (steps.unary, steps.with_constant, steps.pair, steps.reshape, steps.slice_, steps.reduce, steps.pad, steps.casts)


@settings(deadline=None, max_examples=60)
@given(steps.models(*MENU, steps.transpose, steps.flatten, steps.concat))
def test_random_graphs_keep_their_outputs(model: ir.Model) -> None:
    check(EliminateIdentity(), model, changes=None)
