"""A broken graph is refused, and the error quotes the place."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from graphopt import ir
from graphopt.errors import VerifyError
from graphopt.ir.operands import operand_fault
from tests.unit.ir.models import BRANCHES, CONV, LOOP, SCAN, parse


def fault(model: onnx_ir.Model, interface: ir.Interface | None = None) -> str:
    with pytest.raises(VerifyError) as caught:
        ir.verify(model, interface=interface)
    return str(caught.value)


@pytest.mark.parametrize("text", [CONV, BRANCHES, LOOP, SCAN])
def test_sound_models_pass(text: str) -> None:
    model = ir.load(parse(text))
    ir.verify(model, interface=ir.Interface.of(model))


def test_a_use_before_the_producer_names_both_and_quotes_the_node() -> None:
    model = ir.load(parse(CONV))
    conv = model.graph.node("conv")
    model.graph.remove(conv)
    model.graph.append(conv)
    message = fault(model)
    assert "Relu 'act' uses %h, which is made only after it, by Conv 'conv'" in message
    assert '> %r = Relu(%h)  # ?[...] "act"' in message


def test_a_value_of_a_removed_node() -> None:
    model = ir.load(parse(CONV))
    model.graph.remove(model.graph.node("conv"))
    assert "made by Conv 'conv', which was removed" in fault(model)


def test_a_value_that_nothing_makes() -> None:
    model = ir.load(parse(CONV))
    model.graph.node("act").replace_input_with(0, onnx_ir.Value(name="ghost"))
    assert "uses %ghost, which is neither an input nor an initializer" in fault(model)


def test_a_value_of_a_subgraph_used_outside() -> None:
    model = ir.load(parse(BRANCHES))
    choice = model.graph.node("choice")
    inner = choice.attributes["then_branch"].as_graph()[0].outputs[0]
    model.graph.append(onnx_ir.node("Neg", [inner]))
    assert "is made in another graph, 'yes'" in fault(model)


def test_one_name_for_two_values() -> None:
    model = ir.load(parse(CONV))
    model.graph.node("act").outputs[0].name = "h"
    assert "%h has more than one producer" in fault(model)


def test_a_name_in_a_subgraph_that_an_outer_value_bears() -> None:
    model = ir.load(parse(BRANCHES))
    model.graph.node("choice").attributes["else_branch"].as_graph()[0].outputs[0].name = "h"
    assert "%h has more than one producer" in fault(model)


def test_a_graph_output_that_nothing_makes() -> None:
    model = ir.load(parse(CONV))
    model.graph.outputs[0] = onnx_ir.Value(
        name="z", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape([1])
    )
    assert "the output %z is not made" in fault(model)


def test_an_initializer_of_another_shape_than_declared() -> None:
    model = ir.load(parse(CONV))
    model.graph.initializers["w"].const_value = onnx_ir.tensor(np.zeros((4, 3, 1, 1), np.float32))
    message = fault(model)
    assert "%w has shape [4,3,3,3], its data has [4,3,1,1]" in message
    assert "Conv(%x, %w)" in message


def test_an_initializer_of_another_type_than_declared() -> None:
    model = ir.load(parse(CONV))
    model.graph.initializers["w"].const_value = onnx_ir.tensor(np.zeros((4, 3, 3, 3), np.float16))
    assert "%w is declared as f32, its data is f16" in fault(model)


def test_an_initializer_without_data() -> None:
    model = ir.load(parse(CONV))
    model.graph.initializers["w"].const_value = None
    assert "%w has no data" in fault(model)


def test_shapes_that_do_not_fit_an_operator() -> None:
    model = ir.load(parse(CONV))
    wrong = model.graph.initializers["w"]
    wrong.shape = onnx_ir.Shape([4, 3, 3])
    wrong.const_value = onnx_ir.tensor(np.zeros((4, 3, 3), np.float32))
    message = fault(model)
    assert "Conv 'conv'" in message
    assert "> %h = Conv" in message


def test_types_that_do_not_fit_an_operator() -> None:
    model = ir.load(parse(CONV))
    model.graph.inputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.INT64)
    assert "Conv 'conv'" in fault(model)


def test_a_recorded_shape_that_is_stale() -> None:
    model = ir.load(parse(CONV))
    ir.refresh_shapes(model)
    model.graph.node("act").outputs[0].shape = onnx_ir.Shape([1, 5, 8, 8])
    assert "Relu 'act'" in fault(model)


def test_an_attribute_that_an_operator_does_not_have() -> None:
    model = ir.load(parse(CONV))
    model.graph.node("act").attributes["speed"] = onnx_ir.AttrInt64("speed", 3)
    assert "speed" in fault(model)


def test_functions_must_be_inlined() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    net (float[2] x) => (float[2] y) { y = f.A (x) }
    <domain: "f", opset_import: ["" : 17]> A (a) => (b) { b = Neg (a) }"""
    assert "functions must be inlined, found A" in fault(onnx_ir.from_proto(parse(text)))


def test_a_changed_interface() -> None:
    model = ir.load(parse(CONV))
    before = ir.Interface.of(model)
    model.graph.inputs[0].name = "renamed"
    assert "inputs were ['x'], now ['renamed']" in fault(model, before)
    model.graph.inputs[0].name = "x"
    model.graph.inputs[0].shape = onnx_ir.Shape([1, 3, 8, 8])
    assert "input was x: f32[N,3,8,8], now x: f32[1,3,8,8]" in fault(model, before)


def test_an_output_may_become_known_better_but_not_otherwise() -> None:
    model = ir.load(parse(CONV))
    before = ir.Interface.of(model)
    model.graph.outputs[0].shape = onnx_ir.Shape(["N", 256])
    ir.verify(model, interface=before)
    model.graph.outputs[0].shape = onnx_ir.Shape(["M", 256])
    assert "output was y: f32[N,K], now y: f32[M,256]" in fault(model, before)


CHANNELS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1,4,8,8] x, float[6,4,3,3] w, float[6] b, float[6,5,3,3] t, float[5] s) => (float[1,5,8,8] y) {
   [first] h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
   [second] u = ConvTranspose <pads = [1, 1, 1, 1]> (h, t, s)
   [norm] y = BatchNormalization (u, s, s, s, s)
}
"""


@pytest.mark.parametrize(
    ("value", "shape", "words"),
    [
        ("x", [1, 3, 8, 8], "Conv 'first' expects 4 input channels, its input has 3"),
        ("b", [7], "Conv 'first' has 6 filters, its bias has 7 entries"),
        ("t", [5, 5, 3, 3], "ConvTranspose 'second' expects 5 input channels, its input has 6"),
        ("s", [4], "ConvTranspose 'second' has 5 filters, its bias has 4 entries"),
        ("t", [6, 9, 3, 3], "has 9 filters"),
    ],
)
def test_numbers_of_channels_that_onnx_does_not_check(value: str, shape: list[int], words: str) -> None:
    model = ir.load(parse(CHANNELS))
    ir.refresh_shapes(model)
    ir.verify(model)
    next(v for v in model.graph.inputs if v.name == value).shape = onnx_ir.Shape(shape)
    message = fault(model)
    assert words in message
    assert "> " in message


def test_a_normalization_of_another_number_of_channels() -> None:
    model = ir.load(parse(CHANNELS))
    model.graph.node("norm").replace_input_with(0, model.graph.inputs[0])
    assert "BatchNormalization 'norm' expects 5 input channels, by its input 1, its input has 4" in fault(model)


def test_a_reference_in_place_of_a_number_of_groups_is_no_crash() -> None:
    model = ir.load(parse(CONV))
    node = next(node for node in model.graph if node.op_type == "Conv")
    node.attributes["group"] = onnx_ir.RefAttr("group", "of_a_function", onnx_ir.AttributeType.INT)
    assert operand_fault(node) == ""
