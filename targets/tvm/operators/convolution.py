"""Conv by TVM's converter, with the bias shaped here: TVM would compile a program to reshape each constant."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from graphopt.targets.tvm.operators.attributes import plain_attributes


def convert_conv(builder: relax.BlockBuilder, inputs: list[Any], attributes: dict[str, Any], node: ir.Node) -> Any:
    """Conv-1, -11, -22 in one to three spatial dimensions."""
    converter = onnx_frontend._get_convert_map()["Conv"].get_converter(11)
    product = converter(builder, onnx_frontend.onnx_input(inputs[:2]), plain_attributes(node), [{}, {}])
    bias = inputs[2] if len(inputs) > 2 else None
    if bias is None:
        return product
    product = builder.normalize(product)
    shape = (1, -1, *[1] * (len(product.ty.shape) - 2))
    if isinstance(bias, tvm.ir.GenericConst):
        return relax.op.add(product, relax.const(bias.value.numpy().reshape(shape)))
    return relax.op.add(product, relax.op.reshape(bias, (1, int(bias.ty.shape[0]), *shape[2:])))
