"""Infer the output shapes of one node, between two refreshes of the whole model."""

from __future__ import annotations

import onnx
import onnx.defs
import onnx.shape_inference
import onnx_ir as ir

from graphopt.ir.reading import constant, opset_of, static_shape

# Inputs that an output's shape depends on are small: targets, axes, bounds.
_MAX_DATA = 64


def infer_node(model: ir.Model, node: ir.Node) -> None:
    """Set output shapes of a standard `node` that are not static although all its inputs' shapes are.

    What ONNX cannot infer stays as it is: the refresh of the model reports what is wrong with it.
    """
    if all(static_shape(output) is not None for output in node.outputs):
        return
    inputs = [value for value in node.inputs if value is not None]
    if any(value.type is None or static_shape(value) is None for value in inputs):
        return
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return
    types, data = dict[str, onnx.TypeProto](), dict[str, onnx.TensorProto]()
    for value in inputs:
        name = f"{value.name}"
        types[name] = _type_proto(value)
        tensor = value.const_value
        if tensor is not None and tensor.size <= _MAX_DATA and constant(value) is not None:
            data[name] = ir.serde.serialize_tensor(tensor)
    opset = opset_of(model)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        inferred = onnx.shape_inference.infer_node_outputs(
            schema, ir.serde.serialize_node(node), types, data, opset_imports=[onnx.helper.make_opsetid("", opset)]
        )
    except (onnx.shape_inference.InferenceError, onnx.defs.SchemaError):
        return
    for output in node.outputs:
        proto = inferred.get(output.name or "")
        shape = None if proto is None else ir.serde.deserialize_type_proto_for_shape(proto)
        if proto is not None and shape is not None and shape.is_static() and not output.is_graph_output():
            output.shape = shape
            output.type = ir.serde.deserialize_type_proto_for_type(proto)


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    if value.type is not None:
        ir.serde.serialize_type_into(proto, value.type)
    if value.shape is not None:
        ir.serde.serialize_shape_into(proto, value.shape)
    return proto
