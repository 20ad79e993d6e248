"""A ModelProto of a model without its weights, for onnx's C++ tools, which take at most 2 GB."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.serde

from graphopt.errors import ModelError

# Shapes and the other small constants that inference reads stay.
_KEPT_BYTES = 1024
_PLACEHOLDER = "graphopt-weight-"


def light_proto(model: ir.Model, weights: list[ir.TensorProtocol] | None = None) -> onnx.ModelProto:
    """Serialize `model`, which is not changed, with weights beyond a kilobyte as references to nowhere.

    Their types and dimensions remain, which is all that shape inference wants of them.

    Args:
        weights: receives the weights that were left out, for `reattach`.

    Raises:
        ModelError: something in the model does not fit into a protobuf.
    """
    left_out: list[ir.TensorProtocol] = weights if weights is not None else []
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _light(value.const_value, left_out)
    for node in copy.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                light = _light(attribute.as_tensor(), left_out)
                if light is not attribute.value:
                    node.attributes[name] = ir.AttrTensor(name, light, doc_string=attribute.doc_string)
    try:
        return ir.serde.serialize_model(copy)
    except Exception as error:  # onnx_ir's SerdeError and whatever protobuf refuses
        cause = error.__cause__ or error
        raise ModelError(f"the model cannot be written as a protobuf: {str(cause).splitlines()[0]}") from error


def _light(tensor: ir.TensorProtocol, left_out: list[ir.TensorProtocol]) -> ir.TensorProtocol:
    if isinstance(tensor, ir.StringTensor):
        return tensor
    if tensor.nbytes <= _KEPT_BYTES:
        is_file = isinstance(tensor, ir.ExternalTensor)
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name) if is_file else tensor
    left_out.append(tensor)
    location = f"{_PLACEHOLDER}{len(left_out) - 1}"
    return ir.ExternalTensor(location, 0, 0, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or "")


def reattach(model: ir.Model, weights: list[ir.TensorProtocol]) -> None:
    """Give `model`, made from what `light_proto` returned, the weights that were left out."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _heavy(value.const_value, weights)
    for node in model.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                heavy = _heavy(attribute.as_tensor(), weights)
                node.attributes[name] = ir.AttrTensor(name, heavy, doc_string=attribute.doc_string)


def _heavy(tensor: ir.TensorProtocol, weights: list[ir.TensorProtocol]) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor) and str(tensor.location).startswith(_PLACEHOLDER):
        return weights[int(str(tensor.location).removeprefix(_PLACEHOLDER))]
    return tensor
