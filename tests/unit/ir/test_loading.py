"""What loads, and what of it is kept."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import ModelError, ModelWarning
from tests.unit.ir.models import BRANCHES, CONV, LOOP, SCAN, parse, with_external_data

FUNCTIONS = """
<ir_version: 8, opset_import: ["" : 17, "loc" : 1]>
net (float[2,4] x, bool c) => (float[2,4] y) {
   t = loc.Twice (x)
   u = loc.Choose <alpha = 0.5> (t, c)
   y = If (c) <
      then_branch = yes () => (float[2,4] a) { a = loc.Twice (u) },
      else_branch = no () => (float[2,4] b) { tmp = Neg (u)  b = loc.Twice (tmp) }
   >
}
<domain: "loc", opset_import: ["" : 17]>
Twice (x) => (y) { tmp = Identity (x)  y = Add (tmp, tmp) }
<domain: "loc", opset_import: ["" : 17, "loc" : 1]>
Choose <alpha> (x, c) => (y) {
   y = If (c) <
      then_branch = yes () => (float[2,4] tmp) { tmp = LeakyRelu <alpha : float = @alpha> (x) },
      else_branch = no () => (float[2,4] r) { q = loc.Twice (x)  r = Identity (q) }
   >
}
"""


def run(model: onnx.ModelProto | onnx_ir.Model, feeds: dict[str, Any]) -> list[np.ndarray]:
    proto = model if isinstance(model, onnx.ModelProto) else onnx_ir.to_proto(model)
    return list(onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds))


def assert_same_results(text: str, feeds: dict[str, Any]) -> onnx_ir.Model:
    proto = parse(text)
    model = ir.load(proto)
    ir.refresh_shapes(model)
    ir.verify(model, interface=ir.Interface.of(model))
    for expected, found in zip(run(proto, feeds), run(model, feeds), strict=True):
        np.testing.assert_array_equal(found, expected)
    return model


def test_every_kind_of_source_gives_the_same_model(tmp_path: Path) -> None:
    proto = parse(CONV)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    sources = [path, str(path), path.read_bytes(), proto, onnx_ir.from_proto(proto)]
    assert len({ir.to_text(ir.load(source)) for source in sources}) == 1


def test_the_source_stays_as_it_was() -> None:
    proto = parse(CONV)
    before = proto.SerializeToString()
    model = ir.load(proto)
    model.graph.initializers["w"].const_value = onnx_ir.tensor(np.ones((4, 3, 3, 3), np.float32))
    again = ir.load(model)
    again.graph.node(0).name = "changed"
    assert proto.SerializeToString() == before
    assert model.graph.node(0).name == "conv"


def test_names_doc_strings_and_metadata_survive_load_and_save(tmp_path: Path) -> None:
    proto = parse(CONV)
    proto.doc_string, proto.domain, proto.model_version, proto.producer_version = "model", "org.test", 7, "1.2"
    graph = proto.graph
    graph.doc_string = "graph"
    graph.metadata_props.add(key="graph", value="1")
    graph.input[0].doc_string = "input"
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.input[0].metadata_props.add(key="input", value="2")
    for node in graph.node:
        node.doc_string = "doc of " + node.name
        node.metadata_props.add(key="node", value=node.name)
        for attribute in node.attribute:
            attribute.doc_string = "attribute"
    graph.initializer[0].doc_string = "weight"
    annotation = graph.quantization_annotation.add(tensor_name="h")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    ir.save(ir.load(proto), tmp_path / "saved.onnx")
    saved = onnx.load(tmp_path / "saved.onnx")
    for node in (*saved.graph.node, *graph.node):
        node.ClearField("domain")  # "" and nothing say the same
    for field in ("doc_string", "domain", "model_version", "producer_name", "producer_version", "metadata_props"):
        assert getattr(saved, field) == getattr(proto, field), field
    for field in ("name", "doc_string", "node", "input", "output", "metadata_props", "quantization_annotation"):
        assert getattr(saved.graph, field) == getattr(graph, field), field
    assert {t.name: t.doc_string for t in saved.graph.initializer} == {t.name: t.doc_string for t in graph.initializer}


@pytest.mark.parametrize("choice", [True, False])
def test_functions_are_inlined_in_branches_and_with_captures_and_attributes(choice: bool) -> None:
    feeds = {"x": np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4), "c": np.array(choice)}
    model = assert_same_results(FUNCTIONS, feeds)
    assert not model.functions
    assert {node.domain for node in model.graph.all_nodes()} == {""}


def test_a_call_may_leave_out_outputs_of_a_function() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    net (float[4] x) => (float[4] y) { y = f.Both (x) }
    <domain: "f", opset_import: ["" : 17]>
    Both (a) => (b, c) { b = Neg (a)  c = Abs (a) }"""
    model = ir.load(parse(text))  # ONNX Runtime cannot run the function itself
    ir.verify(model)
    x = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(run(model, {"x": x})[0], -x)


def test_functions_of_another_opset_are_converted() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    net (float[2,3] x) => (float[2,1] y) { y = f.Total (x) }
    <domain: "f", opset_import: ["" : 11]>
    Total (a) => (b) { b = ReduceSum <axes = [1], keepdims = 1> (a) }"""
    model = ir.load(parse(text))
    ir.verify(model)
    feed = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(run(model, {"x": feed})[0], feed.sum(1, keepdims=True))


def test_functions_of_a_custom_domain_may_call_custom_operators() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1, "custom" : 2]>
    net (float[2] x) => (float[2] y) { y = f.Wrap (x) }
    <domain: "f", opset_import: ["" : 17, "custom" : 2]>
    Wrap (a) => (b) { h = custom.Thing <k = 3> (a)  b = Neg (h) }"""
    model = ir.load(parse(text))
    assert [(node.domain, node.op_type) for node in model.graph] == [("custom", "Thing"), ("", "Neg")]
    assert dict(model.opset_imports) == {"": 17, "custom": 2}


@pytest.mark.parametrize("choice", [True, False])
def test_if_keeps_its_captures(choice: bool) -> None:
    assert_same_results(BRANCHES, {"x": np.ones((2, 4), np.float32), "c": np.array(choice)})


def test_loop_keeps_its_captures() -> None:
    assert_same_results(LOOP, {"x": np.arange(3, dtype=np.float32), "n": np.array(4)})


def test_scan_keeps_its_captures() -> None:
    xs = np.arange(15, dtype=np.float32).reshape(5, 3)
    assert_same_results(SCAN, {"start": xs[0], "xs": xs, "k": xs[1]})


def test_custom_operators_pass_untouched(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.acme" : 4]>
    net (float[2] x) => (float[2] y) { h = com.acme.Thing <mode = "fast", k = [1, 2]> (x, , x)  y = Relu (h) }"""
    proto = parse(text)
    model = ir.load(proto)
    ir.refresh_shapes(model)
    ir.verify(model)
    ir.save(model, tmp_path / "saved.onnx")
    saved = onnx.load(tmp_path / "saved.onnx")
    assert saved.graph.node[0] == proto.graph.node[0]
    assert {entry.domain: entry.version for entry in saved.opset_import} == {"": 17, "com.acme": 4}


def test_the_domain_ai_onnx_is_the_default_domain() -> None:
    proto = parse(CONV)
    proto.opset_import[0].domain = "ai.onnx"
    for node in proto.graph.node:
        node.domain = "ai.onnx"
    model = ir.load(proto)
    assert dict(model.opset_imports) == {"": 17}
    ir.verify(model)


@pytest.mark.parametrize("opset", range(7, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_from_seven_on_loads(opset: int) -> None:
    proto = parse(CONV)
    proto.opset_import[0].version = opset
    ir.verify(ir.load(proto))


def test_weights_are_arrays_that_every_look_shares() -> None:
    tensor = ir.load(parse(CONV).SerializeToString()).graph.initializers["w"].const_value
    assert tensor is not None
    assert np.shares_memory(tensor.numpy(), tensor.numpy())


def test_external_data_stays_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_external_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = ir.load("model.onnx")
    monkeypatch.chdir("/")
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, onnx_ir.ExternalTensor)
    np.testing.assert_array_equal(tensor.numpy().reshape(-1), np.arange(108))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_weights_that_are_not_finite_are_named_in_a_warning(value: float, dtype: str) -> None:
    proto = parse(CONV)
    bad = np.zeros((2, 3), dtype)
    bad[1, 1] = value
    proto.graph.initializer.append(numpy_helper.from_array(bad, "bad"))
    with pytest.warns(ModelWarning, match="NaN or infinite values in 'bad'$"):
        ir.load(proto)


def test_a_constant_node_that_is_not_finite_is_named_in_a_warning() -> None:
    proto = parse(CONV)
    value = numpy_helper.from_array(np.array([np.nan], np.float32))
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=value))
    with pytest.warns(ModelWarning, match="'k'"):
        ir.load(proto)


def test_an_external_weight_that_is_not_finite_is_named_in_a_warning(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.seek(16 + 4 * 107)
        file.write(np.float32(np.nan).tobytes())
    with pytest.warns(ModelWarning, match="'w'"):
        ir.load(path)


def test_finite_weights_bring_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ir.load(parse(CONV))


def test_inputs_with_data_become_constants() -> None:
    proto = parse(CONV)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 3, 3]))
    with pytest.warns(ModelWarning, match="'w'"):
        model = ir.load(proto)
    assert [value.name for value in model.graph.inputs] == ["x"]
    proto.ir_version = 3  # where every initializer has to be an input
    proto.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [2]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = ir.load(proto)
    assert [value.name for value in model.graph.inputs] == ["x"]
    ir.verify(model)


def test_training_info_is_dropped_with_a_warning() -> None:
    proto = parse(CONV)
    proto.training_info.add()
    with pytest.warns(ModelWarning, match="not kept: training_info"):
        ir.load(proto)


@pytest.mark.real
def test_real_models_load_verify_and_come_back_the_same(real_models: Path, tmp_path: Path) -> None:
    refused = []
    for path in sorted(real_models.glob("*.onnx")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ModelWarning)
            try:
                model = ir.load(path)
            except ModelError as error:
                refused.append((path.stem, str(error)))
                continue
            ir.refresh_shapes(model)
            ir.verify(model, interface=ir.Interface.of(model))
            ir.save(model, tmp_path / "saved.onnx")
            assert ir.to_text(ir.load(tmp_path / "saved.onnx")) == ir.to_text(model), path.name
    assert [name for name, _ in refused] in ([], ["styletransfer_candy"])  # legacy operators of no standard
    assert all("ImageScaler" in message for _, message in refused)
