"""Conv and ConvTranspose by TVM's converters, with what they lack done here.

The bias is added here: TVM would compile a program to reshape each constant. ConvTranspose's `output_shape`, which TVM
ignores, becomes the pads that ONNX derives from it.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import relax

from graphopt.targets.tvm.operators.attributes import convert_by_tvm
from graphopt.targets.tvm.operators.tensors import Attributes, Tensors, attribute, given, reshaped, shape_of


def convert_conv(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Conv-1, -11, -22 in one to three spatial dimensions."""
    return _biased(builder, convert_by_tvm(builder, inputs[:2], node), given(inputs, 2))


def convert_conv_transpose(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """ConvTranspose-1, -11, -22; with `output_shape` the pads are what is left over, see `_pads_for`."""
    changed = _pads_for(attributes["output_shape"].value, inputs, attributes) if "output_shape" in attributes else {}
    return _biased(builder, convert_by_tvm(builder, inputs[:2], node, changed), given(inputs, 2))


def _pads_for(output_shape: Any, inputs: Tensors, attributes: Attributes) -> dict[str, Any]:
    """Pads and output padding with which the result has the spatial shape `output_shape`.

    ONNX: total = stride · (input − 1) + output_padding + (kernel − 1) · dilation + 1 − output, halved; the odd one goes
    to the end if auto_pad is SAME_UPPER, else to the begin. Less than none: the end has rows that no input reaches.
    """
    x, weight = shape_of(inputs[0])[2:], shape_of(inputs[1])[2:]
    rank = len(x)
    sizes = list(output_shape)[-rank:]  # it may or may not name batch and channels
    strides = attribute(attributes, "strides", [1] * rank)
    dilations = attribute(attributes, "dilations", [1] * rank)
    extra = list(attribute(attributes, "output_padding", [0] * rank))
    upper = attribute(attributes, "auto_pad", "NOTSET") == "SAME_UPPER"
    begins, ends = [], []
    for i in range(rank):
        total = strides[i] * (x[i] - 1) + extra[i] + (weight[i] - 1) * dilations[i] + 1 - sizes[i]
        extra[i] += max(-total, 0)
        small = max(total, 0) // 2
        large = max(total, 0) - small
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return {"pads": begins + ends, "output_padding": extra, "auto_pad": None, "output_shape": None}


def _biased(builder: relax.BlockBuilder, product: Any, bias: Any) -> Any:
    if bias is None:
        return product
    product = builder.emit(product)
    return relax.op.add(product, reshaped(bias, (1, shape_of(bias)[0], *[1] * (len(shape_of(product)) - 2))))


CONVERTERS = {"Conv": convert_conv, "ConvTranspose": convert_conv_transpose}
