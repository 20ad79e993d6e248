"""A ModelProto of a model without its weights, for onnx's C++ tools, which take at most 2 GB."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.serde

# Shapes and the other small constants that inference reads stay.
_KEPT_BYTES = 1024


def light_proto(model: ir.Model) -> onnx.ModelProto:
    """Serialize `model`, which is not changed, with weights beyond a kilobyte as references to nowhere.

    Their types and dimensions remain, which is all that shape inference wants of them.
    """
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _light(value.const_value)
    for node in copy.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                node.attributes[name] = ir.AttrTensor(name, _light(attribute.as_tensor()))
    return ir.serde.serialize_model(copy)


def _light(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, ir.StringTensor) or tensor.nbytes <= _KEPT_BYTES:
        return _in_memory(tensor)
    return ir.ExternalTensor(
        "nowhere", 0, 0, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or ""
    )


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor):
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    return tensor
