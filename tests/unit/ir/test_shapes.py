"""Shapes follow edits; dynamic dimensions stay symbols until they are bound."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import ir
from graphopt.errors import ShapeError
from tests.unit.ir.models import BRANCHES, CONV, LOOP, SCAN, parse


def shapes(model: onnx_ir.Model) -> dict[str, str]:
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    return {value.name or "": f"{value.dtype}{value.shape}" for value in values}


def test_shapes_are_inferred_and_symbols_stay() -> None:
    model = ir.load(parse(CONV))
    ir.refresh_shapes(model)
    assert shapes(model) == {"h": "FLOAT[N,4,8,8]", "r": "FLOAT[N,4,8,8]", "y": "FLOAT[N,K]"}


def test_stale_shapes_go_after_an_edit() -> None:
    model = ir.load(parse(CONV))
    ir.refresh_shapes(model)
    weight = model.graph.initializers["w"]
    weight.const_value = onnx_ir.tensor(np.zeros((6, 3, 3, 3), np.float32), name="w")
    ir.refresh_shapes(model)
    assert shapes(model)["r"] == "FLOAT[N,6,8,8]"
    assert str(weight.shape) == "[6,3,3,3]"
    ir.verify(model)


@pytest.mark.parametrize("text", [CONV, BRANCHES, LOOP, SCAN])
def test_a_second_refresh_changes_nothing(text: str) -> None:
    model = ir.load(parse(text))
    ir.refresh_shapes(model)
    once = ir.to_text(model)
    ir.refresh_shapes(model)
    assert ir.to_text(model) == once


def test_subgraphs_are_inferred_too() -> None:
    model = ir.load(parse(BRANCHES))
    ir.refresh_shapes(model)
    assert shapes(model)["t"] == "FLOAT[2,4]"


def test_outputs_of_custom_operators_keep_what_is_declared() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>
    net (float[2] x) => (float[5] y) <float[5] h> { h = custom.Grow (x)  i = custom.Grow (h)  y = Neg (h) }"""
    model = ir.load(parse(text))
    ir.refresh_shapes(model)
    assert shapes(model) == {"h": "FLOAT[5]", "i": "NoneNone", "y": "FLOAT[5]"}


def test_a_misfit_names_the_node_quotes_it_and_changes_nothing() -> None:
    model = ir.load(parse(CONV))
    ir.refresh_shapes(model)
    before = ir.to_text(model)
    model.graph.inputs[0].shape = onnx_ir.Shape(["N", 3, 8])
    expected = ir.to_text(model)
    with pytest.raises(ShapeError, match="Conv 'conv'") as caught:
        ir.refresh_shapes(model)
    assert "> %h = Conv(%x, %w)" in str(caught.value)
    assert ir.to_text(model) == expected != before


def test_an_output_that_contradicts_its_declaration() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[2,3] x) => (float[2,4] y) { y = Neg (x) }"""
    with pytest.raises(ShapeError, match="4"):
        ir.refresh_shapes(ir.load(parse(text)))


def test_binding_gives_static_shapes_everywhere() -> None:
    model = ir.load(parse(CONV))
    assert ir.bind_shapes(model, {"x": (2, 3, 8, 8)}) == []
    assert shapes(model) == {"h": "FLOAT[2,4,8,8]", "r": "FLOAT[2,4,8,8]", "y": "FLOAT[2,256]"}
    ir.verify(model)


def test_an_unknown_first_dimension_becomes_one_with_a_notice() -> None:
    model = ir.load(parse(CONV))
    assert ir.bind_shapes(model, {}) == ["the unknown first dimension of input 'x' is taken as 1 (batch)"]
    assert shapes(model)["y"] == "FLOAT[1,256]"


def test_a_batch_that_one_input_tells_holds_for_the_inputs_before_it() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[2,batch] state, float[batch,2] x) => (float[2,2] y) { y = MatMul (state, x) }"""
    model = ir.load(parse(text))
    assert ir.bind_shapes(model, {}) == ["the unknown first dimension of input 'x' is taken as 1 (batch)"]
    assert [str(value.shape) for value in model.graph.inputs] == ["[2,1]", "[1,2]"]


def test_a_static_model_needs_no_binding() -> None:
    model = ir.load(parse(BRANCHES))
    assert ir.bind_shapes(model, {}) == []


TWO = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch,time] a, float[batch,time] b, float[2,batch] c) => (float[batch,time] y) { y = Add (a, b) }
"""


def test_a_symbol_is_bound_in_every_input() -> None:
    model = ir.load(parse(TWO))
    ir.bind_shapes(model, {"a": [4, 7]})
    assert [str(value.shape) for value in model.graph.inputs] == ["[4,7]", "[4,7]", "[2,4]"]
    assert shapes(model) == {"y": "FLOAT[4,7]"}


@pytest.mark.parametrize(
    ("bindings", "words"),
    [
        ({}, r"input 'a' has the shape \[batch,time\], with unknown dimension 0 \(batch\), 1 \(time\)"),
        ({"a": [4, 7], "b": [5, 7]}, "input 'b' binds the dimension 'batch' to 5, but input 'a' binds it to 4"),
        ({"a": [4]}, "input 'a' has 2 dimensions"),
        ({"a": [0, 7]}, "sizes are at least 1"),
        ({"c": [3, 1]}, r"input 'c' is \[2,batch\], which \[3,1\] contradicts"),
    ],
)
def test_bindings_that_cannot_be(bindings: dict[str, list[int]], words: str) -> None:
    model = ir.load(parse(TWO))
    before = ir.to_text(model)
    with pytest.raises(ShapeError, match=words):
        ir.bind_shapes(model, bindings)
    assert ir.to_text(model) == before


def test_an_input_that_stays_unknown_comes_with_an_example() -> None:
    with pytest.raises(ShapeError) as caught:
        ir.bind_shapes(ir.load(parse(TWO)), {})
    assert "--shape a=1,224" in caught.value.advice


def test_a_misspelt_input_comes_with_the_nearest() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N] image, float[N] probability) => (float[N] y) { y = Add (image, probability) }"""
    with pytest.raises(ShapeError) as caught:
        ir.bind_shapes(ir.load(parse(text)), {"imgae": [1]})
    assert caught.value.advice == "did you mean image?"


def test_a_binding_that_the_model_cannot_take_is_undone() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N,M] a, float[4,5] b) => (float[N,5] y) { y = MatMul (a, b) }"""
    model = ir.load(parse(text))
    before = ir.to_text(model)
    with pytest.raises(ShapeError, match="MatMul"):
        ir.bind_shapes(model, {"a": [2, 3]})
    assert ir.to_text(model) == before


def test_an_input_of_unknown_rank_must_be_bound() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[A,B] x) => (float[C,D] y) { y = Neg (x) }"""
    model = ir.load(parse(text))  # which no file can say, but a pass may forget it
    model.graph.inputs[0].shape = model.graph.outputs[0].shape = None
    with pytest.raises(ShapeError, match="not even its rank"):
        ir.bind_shapes(model, {})
    ir.bind_shapes(model, {"x": [2, 3]})
    assert shapes(model) == {"y": "FLOAT[2,3]"}


@given(st.lists(st.integers(1, 50), min_size=4, max_size=4))
def test_any_sizes_that_fit_the_declaration_bind_and_verify(sizes: list[int]) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[A,B,C,D] x) => (float[D,C,B,A] y) { y = Transpose <perm = [3, 2, 1, 0]> (x) }"""
    model = ir.load(parse(text))
    ir.bind_shapes(model, {"x": sizes})
    ir.verify(model)
    assert ir.Interface.of(model).outputs[0].shape == tuple(reversed(sizes))
