from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

import graphopt.ir as graph_ir
from graphopt.passes.cleanup.move_transposes import MoveTransposes
from tests.passes import random_graphs as steps
from tests.passes.harness import Outcome, check, parse, run

LAST_TO_FIRST = "Transpose <perm = [0, 3, 1, 2]>"
FIRST_TO_LAST = "Transpose <perm = [0, 2, 3, 1]>"


def header(opset: int = 17) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>'


def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def between(nodes: str, opset: int = 17, out: str = "1,4,5,3", **weights: Any) -> ir.Model:
    """Channels last, to channels first (a), `nodes` from a to b, and back."""
    text = f"g (float[1,4,5,3] x) => (float[{out}] y) {{ a = {LAST_TO_FIRST} (x) {nodes} y = {FIRST_TO_LAST} (b) }}"
    return parse(header(opset) + text, **weights)


def test_residual_block_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        header() + "g (float[1,4,4,2] x) => (float[1,4,4,2] y) "
        f"{{ a = {LAST_TO_FIRST} (x) b = Conv(a, w) c = {FIRST_TO_LAST} (b) d = Add(c, k) e = Relu(d) f = Add(e, x) "
        f"g = {LAST_TO_FIRST} (f) h = Conv(g, w) y = {FIRST_TO_LAST} (h) }}",
        w=normal(2, 2, 1, 1),
        k=normal(2),
    )
    outcome = check(MoveTransposes(), model)
    golden("residual-block", outcome)
    assert outcome.operators().count("Transpose") == 2
    assert outcome.result.statistics == {"transposes-removed": 2, "nodes-turned": 3}


THROUGH = {
    "unary": partial(between, "c = Relu(a) b = Sigmoid(c)"),
    "clip": partial(between, "b = Clip(a, l, h)", l=np.array(0, np.float32), h=np.array(6, np.float32)),
    "constant of the channel": partial(between, "b = Mul(a, k)", k=normal(3, 1, 1)),
    "constant of all axes": partial(between, "b = PRelu(a, k)", k=normal(1, 3, 4, 5)),
    "scalar": partial(between, "b = Add(k, a)", k=normal()),
    "where": partial(between, "c = Greater(a, k) b = Where(c, a, k)", k=normal(3, 1, 1)),
    "concat": partial(between, "b = Concat <axis = 1> (a, k)", out="1,4,5,5", k=normal(1, 2, 4, 5)),
    "split-11": partial(between, "c, d = Split <axis = 1, split = [1, 2]> (a) b = Concat <axis = -3> (d, c)", 11),
    "softmax": partial(between, "b = Softmax <axis = 1> (a)"),
    "softmax of the last axis": partial(between, "b = Softmax(a)"),
    "reduce-11": partial(between, "b = ReduceMean <axes = [2, -1]> (a)", 11, out="1,1,1,3"),
    "reduce-18": partial(between, "b = ReduceMean(a, i)", 18, out="1,1,1,3", i=np.array([2, 3])),
    "reduce all": partial(between, "b = ReduceMax(a)", out="1,1,1,1"),
    "pad-9": partial(between, "b = Pad <pads = [0, 0, 1, 2, 0, 0, 3, 4]> (a)", 9, out="1,8,11,3"),
    "pad-13": partial(between, 'b = Pad <mode = "edge"> (a, p)', out="1,8,11,3", p=np.array([0, 0, 1, 2, 0, 0, 3, 4])),
    "slice-9": partial(between, "b = Slice <starts = [0, 1, 1], ends = [1, 3, 3]> (a)", 9, out="1,2,5,2"),
    "slice-13": partial(
        between, "b = Slice(a, s, e, i)", out="1,4,2,3", s=np.array([1]), e=np.array([3]), i=np.array([-1])
    ),
    "quantize": partial(
        between,
        "c = QuantizeLinear <axis = 1> (a, s, z) b = DequantizeLinear <axis = 1> (c, s, z)",
        s=np.array([0.1, 0.2, 0.3], np.float32),
        z=np.array([1, 2, 3], np.uint8),
    ),
}


@pytest.mark.parametrize("case", THROUGH)
def test_transposes_cancel_through(case: str) -> None:
    outcome = check(MoveTransposes(), THROUGH[case]())
    assert "Transpose" not in outcome.operators()


STAY = {
    "conv": partial(between, "b = Conv(a, w)", w=normal(3, 3, 1, 1)),
    "softmax of the flattened tensor": partial(between, "b = Softmax <axis = 1> (a)", 11),
    "reduce that drops axes": partial(
        between, "c = ReduceMean <axes = [2], keepdims = 0> (a) b = Unsqueeze(c, i)", out="1,1,5,3", i=np.array([2])
    ),
    "no gain": partial(
        parse,
        header() + "g (float[2,3] x, float[3,2] z) => (float[3,2] y) { a = Transpose(x) b = Relu(a) y = Add(b, z) }",
    ),
}


@pytest.mark.parametrize("case", STAY)
def test_transposes_stay(case: str) -> None:
    check(MoveTransposes(), STAY[case](), changes=False)


def test_moving_one_way_saves_what_the_other_would_add() -> None:
    """Two transposed inputs meet in an Add: one transpose behind it does for both."""
    model = parse(
        header() + "g (float[1,4,5,3] x, float[1,4,5,3] z) => (float[1,3,4,5] y) "
        f"{{ a = {LAST_TO_FIRST} (x) b = {LAST_TO_FIRST} (z) c = Add(a, b) y = Relu(c) }}"
    )
    outcome = check(MoveTransposes(), model)
    assert outcome.operators().count("Transpose") == 1
    assert outcome.operators()[0] == "Add"


def test_a_value_that_a_branch_captures_keeps_its_layout() -> None:
    model = parse(
        header()
        + f"""g (float[1,4,5,3] x, bool c) => (float[1,4,5,3] y) {{
            a = {LAST_TO_FIRST} (x)
            b = Relu(a)
            d = If (c) <then_branch = t () => (float[1,3,4,5] p) {{ p = Neg(b) }},
                        else_branch = e () => (float[1,3,4,5] q) {{ q = Abs(b) }}>
            f = Add(b, d)
            y = {FIRST_TO_LAST} (f)
        }}"""
    )
    check(MoveTransposes(), model, feeds={"x": normal(1, 4, 5, 3), "c": np.array(True)}, changes=None)


def test_a_pair_between_an_input_and_an_output_of_the_graph_gives_no_reason_to_turn_what_reads_it() -> None:
    """An input cannot take an output's name, so the pair stays: turning the Relu, unread, saves nothing."""
    model = parse(
        header() + "g (float[1,4,5,3] x) => (float[1,4,5,3] y) "
        f"{{ a = {LAST_TO_FIRST} (x) r = Relu(a) y = {FIRST_TO_LAST} (a) }}"
    )
    check(MoveTransposes(), model, changes=False)


def test_two_outputs_of_one_tensor_cannot_both_take_its_name() -> None:
    model = parse(
        header() + "g (float[1,3,4,5] x) => (float[1,4,5,3] y, float[1,4,5,3] z) "
        f"{{ a = Relu(x) y = {FIRST_TO_LAST} (a) z = {FIRST_TO_LAST} (a) }}"
    )
    outcome = check(MoveTransposes(), model, changes=None)
    assert outcome.operators().count("Transpose") == 2


MENU = (steps.transpose_layout, steps.transpose_layout, steps.transpose_layout, steps.unary, steps.with_constant)


@settings(deadline=None, max_examples=80)
@given(steps.models(*MENU, steps.pair, steps.concat, steps.halves, steps.slice_, steps.reduce, steps.pad, rank4=True))
def test_random_graphs_keep_their_outputs_and_never_gain_a_transpose(model: ir.Model) -> None:
    check(MoveTransposes(), model, changes=None)
    before = sum(node.op_type == "Transpose" for node in model.graph)
    after = graph_ir.clone(model)
    result = run(MoveTransposes(), after)
    left = sum(node.op_type == "Transpose" for node in after.graph)
    assert left <= before
    if result.statistics["nodes-turned"]:
        assert left < before
