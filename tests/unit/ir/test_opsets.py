"""Conversion to another opset keeps results, weights and metadata."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import pytest

from graphopt import ir
from graphopt.errors import ModelError, ModelWarning
from tests.unit.ir.models import BRANCHES, CONV, LOOP, SCAN, parse

OLD = """
<ir_version: 6, opset_import: ["" : 11, "custom" : 3], producer_name: "tests", metadata_props: ["author" : "someone"]>
net (float[2,4] x, bool c) => (float[2,1] y) {
   [total] s = ReduceSum <axes = [1], keepdims = 1> (x)
   [choice] y = If (c) <
      then_branch = yes () => (float[2,1] a) { t = Squeeze <axes = [1]> (s)  a = Unsqueeze <axes = [1]> (t) },
      else_branch = no () => (float[2,1] b) { b = Neg (s) }
   >
}
"""


def run(model: onnx_ir.Model, **feeds: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString())
    return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize("version", [13, 17, 21])
@pytest.mark.parametrize("choice", [True, False])
def test_operators_whose_attributes_became_inputs(version: int, choice: bool) -> None:
    model = ir.load(parse(OLD))
    before = ir.fingerprint(model)
    converted = ir.convert_opset(model, version)
    ir.verify(converted, interface=ir.Interface.of(model))
    assert converted.opset_imports[""] == version
    feeds = {"x": np.arange(8, dtype=np.float32).reshape(2, 4), "c": np.array(choice)}
    np.testing.assert_array_equal(run(converted, **feeds), run(model, **feeds))
    assert ir.fingerprint(model) == before


def test_weights_are_shared_and_metadata_comes_back() -> None:
    proto = parse(CONV)
    proto.graph.node[0].doc_string = "doc"
    proto.graph.node[0].metadata_props.add(key="k", value="v")
    model = ir.load(proto)
    model.graph.initializers["w"].const_value = onnx_ir.tensor(np.zeros((512, 3, 3, 3), np.float32))
    model.graph.initializers["w"].shape = onnx_ir.Shape([512, 3, 3, 3])
    converted = ir.convert_opset(model, 21)
    assert converted.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    conv = converted.graph.node("conv")
    assert (conv.doc_string, dict(conv.metadata_props)) == ("doc", {"k": "v"})
    assert (converted.producer_name, dict(converted.metadata_props)) == ("tests", {"author": "someone"})
    assert converted.ir_version >= 10  # what opset 21 needs


@pytest.mark.parametrize("text", [CONV, BRANCHES, LOOP, SCAN])
def test_the_same_version_gives_a_copy(text: str) -> None:
    model = ir.load(parse(text))
    copy = ir.convert_opset(model, 17)
    assert copy is not model
    assert ir.to_text(copy) == ir.to_text(model)


@pytest.mark.parametrize("version", [6, 999])
def test_versions_out_of_range(version: int) -> None:
    with pytest.raises(ModelError, match=f"cannot convert to opset {version}, expected 7 to"):
        ir.convert_opset(ir.load(parse(CONV)), version)


def test_an_operator_that_cannot_be_converted_is_named_and_quoted() -> None:
    with pytest.raises(ModelError, match=r"from opset 17 to 11: .*Relu") as caught:
        ir.convert_opset(ir.load(parse(CONV)), 11)
    assert "> %r = Relu(%h)" in str(caught.value)


@pytest.mark.real
@pytest.mark.slow
def test_real_models_convert_to_the_newest_opset(real_models: Path) -> None:
    for path in sorted(real_models.glob("*.onnx")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ModelWarning)
            try:
                model = ir.load(path)
            except ModelError:
                continue  # test_loading says which
        converted = ir.convert_opset(model, 21)
        ir.verify(converted, interface=ir.Interface.of(model))
