"""Operators of which the shapes say all: the elements stay as they are, or do not matter.

The output's static shape is known from ONNX's shape inference, so that no shape is computed at run time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax

from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    constant,
    must_know,
    reshaped,
    shape_of,
    unsupported,
)


def convert_reshape(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Reshape, Flatten, Squeeze, Unsqueeze: whatever the attributes, the result's shape is static."""
    shape = output_shape(node)
    if int(np.prod(shape)) != int(np.prod(shape_of(inputs[0]))):
        raise unsupported(node, f"its input of shape {list(shape_of(inputs[0]))} has not the elements of {list(shape)}")
    return reshaped(inputs[0], shape)


def convert_expand(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Expand: broadcast to the output's shape."""
    shape = output_shape(node)
    return inputs[0] if shape_of(inputs[0]) == shape else relax.op.broadcast_to(inputs[0], shape)


def convert_identity(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Identity and other operators that hand their input on."""
    return inputs[0]


def convert_dropout(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Dropout in inference: its input, and a mask that is all true. Training with ratio 0 is the same."""
    training, ratio = must_know(node, inputs, 2, "training_mode"), must_know(node, inputs, 1, "ratio")
    if training is not None and bool(training.item()) and (ratio is None or ratio.item() != 0):
        raise unsupported(node, "it drops elements at random (training_mode is true)", "export the model for inference")
    return [inputs[0], constant(np.ones(shape_of(inputs[0]), dtype=bool))]


def convert_shape(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Shape, with `start` and `end`."""
    start, end = attribute(attributes, "start", 0), attribute(attributes, "end", None)
    return constant(np.array(shape_of(inputs[0])[start:end], dtype=np.int64))


def convert_size(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Size: the number of elements."""
    return constant(np.array(np.prod(shape_of(inputs[0]), dtype=np.int64)))


def convert_constant(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Constant with a dense value."""
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    if tensor is None:
        raise unsupported(node, f"its value ({', '.join(attributes)}) is no dense tensor", "make it a dense tensor")
    return constant(tensor.numpy())


def convert_constant_of_shape(
    builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node
) -> Any:
    """ConstantOfShape: one value everywhere, float32 0 if none is given."""
    value = attributes["value"].value.numpy().reshape(()) if "value" in attributes else np.float32(0)
    return constant(np.full(output_shape(node), value))


def convert_eye_like(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """EyeLike: ones on the diagonal `k`."""
    rows, columns = output_shape(node)
    dtype = node.outputs[0].dtype
    assert dtype is not None  # the importer has checked it
    return constant(np.eye(rows, columns, int(attribute(attributes, "k", 0)), dtype=dtype.numpy()))


def output_shape(node: ir.Node) -> tuple[int, ...]:
    """The static shape of a node's first output."""
    shape = node.outputs[0].shape
    if shape is None or not shape.is_static():
        raise unsupported(node, f"the shape of its result is {shape}, not static", "bind the inputs' shapes")
    return tuple(int(extent) for extent in shape.numpy())


CONVERTERS = {
    "Constant": convert_constant,
    "ConstantOfShape": convert_constant_of_shape,
    "Dropout": convert_dropout,
    "Expand": convert_expand,
    "EyeLike": convert_eye_like,
    "Flatten": convert_reshape,
    "Identity": convert_identity,
    "Reshape": convert_reshape,
    "Shape": convert_shape,
    "Size": convert_size,
    "Squeeze": convert_reshape,
    "Unsqueeze": convert_reshape,
}
