"""A model comes back from GraphSurgeon as it went, or does not go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import ModelError, PassError
from tests.unit.ir.models import BRANCHES, CONV, LOOP, SCAN, parse, with_external_data


@pytest.mark.parametrize("text", [CONV, BRANCHES, LOOP, SCAN])
def test_there_and_back_changes_nothing(text: str) -> None:
    model = ir.load(parse(text))
    back = ir.from_graphsurgeon(ir.to_graphsurgeon(model), model)
    assert ir.fingerprint(back) == ir.fingerprint(model)


def test_what_graphsurgeon_drops_is_put_back() -> None:
    proto = parse(CONV)
    proto.doc_string, proto.domain, proto.model_version = "model", "org.test", 7
    proto.graph.doc_string = "graph"
    proto.graph.input[0].doc_string = "input"
    proto.graph.input[0].type.denotation = "IMAGE"
    proto.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    proto.graph.initializer[0].doc_string = "weight"
    for node in proto.graph.node:
        node.doc_string = "doc"
        node.metadata_props.add(key="k", value=node.name)
        for attribute in node.attribute:
            attribute.doc_string = "attribute"
    annotation = proto.graph.quantization_annotation.add(tensor_name="h")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    model = ir.load(proto)
    back = onnx_ir.to_proto(ir.from_graphsurgeon(ir.to_graphsurgeon(model), model))
    before = onnx_ir.to_proto(model)
    for side in (back, before):
        tensors = sorted(side.graph.initializer, key=lambda tensor: tensor.name)
        infos = sorted(side.graph.value_info, key=lambda info: info.name)
        del side.graph.initializer[:], side.graph.value_info[:]
        side.graph.initializer.extend(tensors)
        side.graph.value_info.extend(infos)
    assert back == before


def test_an_edit_arrives() -> None:
    model = ir.load(parse(CONV))
    graph = ir.to_graphsurgeon(model)
    next(node for node in graph.nodes if node.op == "Relu").op = "Sigmoid"
    graph.tensors()["w"].values = np.zeros((4, 3, 3, 3), np.float32)
    back = ir.from_graphsurgeon(graph, model)
    assert [node.op_type for node in back.graph] == ["Conv", "Sigmoid", "Reshape"]
    weight = back.graph.initializers["w"].const_value
    assert weight is not None
    assert not weight.numpy().any()


def test_external_weights_come_along(tmp_path: Path) -> None:
    model = ir.load(with_external_data(tmp_path))
    assert ir.fingerprint(ir.from_graphsurgeon(ir.to_graphsurgeon(model), model)) == ir.fingerprint(model)


@pytest.mark.parametrize(
    ("kind", "raw", "size"),
    [
        (TensorProto.INT4, b"\x21", 2),
        (TensorProto.UINT4, b"\x21", 2),
        (TensorProto.FLOAT4E2M1, b"\x21", 2),
        (TensorProto.FLOAT8E4M3FNUZ, b"\x01\x02", 2),
    ],
)
def test_constants_that_graphsurgeon_writes_wrongly_are_refused(kind: int, raw: bytes, size: int) -> None:
    proto = parse(CONV)
    proto.graph.initializer.add(name="tiny", data_type=kind, dims=[size], raw_data=raw)
    with pytest.raises(ModelError, match=r"would lose the \w+ constant 'tiny'"):
        ir.to_graphsurgeon(ir.load(proto))


def test_string_constants_are_refused() -> None:
    proto = parse(CONV)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(["a"], object), "words"))
    with pytest.raises(ModelError, match="STRING constant 'words'"):
        ir.to_graphsurgeon(ir.load(proto))


@pytest.mark.parametrize(
    "attribute",
    [
        onnx.AttributeProto(name="a", type=onnx.AttributeProto.INTS),
        onnx.AttributeProto(name="a", type=onnx.AttributeProto.STRING, s=b"\xff"),
        helper.make_attribute("a", helper.make_tensor_type_proto(1, [2])),
        helper.make_attribute("a", [numpy_helper.from_array(np.zeros(2))]),
    ],
    ids=["empty-list", "not-utf8", "type", "tensors"],
)
def test_attributes_that_graphsurgeon_loses_are_refused(attribute: onnx.AttributeProto) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>
    net (float[2] x) => (float[2] y) { [odd] y = custom.Thing (x) }"""
    proto = parse(text)
    proto.graph.node[0].attribute.append(attribute)
    with pytest.raises(ModelError, match="would lose the attribute 'a' of Thing 'odd'"):
        ir.to_graphsurgeon(ir.load(proto))


def test_an_edit_that_breaks_the_graph_is_a_pass_error() -> None:
    model = ir.load(parse(CONV))
    graph = ir.to_graphsurgeon(model)
    graph.nodes.pop(0)
    with pytest.raises(PassError, match="the edited GraphSurgeon graph is not valid"):
        ir.from_graphsurgeon(graph, model)


def test_an_edit_of_the_interface_is_a_pass_error() -> None:
    model = ir.load(parse(CONV))
    graph = ir.to_graphsurgeon(model)
    graph.inputs[0].name = "z"
    with pytest.raises(PassError, match="interface changed"):
        ir.from_graphsurgeon(graph, model)


@pytest.mark.real
@pytest.mark.slow
def test_real_models_come_back_with_the_same_results(real_models: Path) -> None:
    for name in ("silero_vad_16k_op15", "mobilenet_v2_1.0_224", "kws_lstm3_mfcc12"):
        model = ir.load(real_models / f"{name}.onnx")
        assert ir.fingerprint(ir.from_graphsurgeon(ir.to_graphsurgeon(model), model)) == ir.fingerprint(model), name
