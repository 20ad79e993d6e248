"""QuantizeLinear and DequantizeLinear: by TVM's converters, but blocked ones as their formulas.

Blocked means that `block_size` neighbours along the axis share a scale and a zero point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from graphopt.targets.tvm.operators.attributes import convert_by_tvm
from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    axis_of,
    compute,
    given,
    output_dtype,
    shape_of,
)


def convert_dequantize(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """DequantizeLinear: (x − zero point) · scale."""
    block = attribute(attributes, "block_size", 0)
    if not block:
        return convert_by_tvm(builder, inputs, node)
    x, scale, zero = inputs[0], inputs[1], given(inputs, 2)
    axis, dtype = axis_of(attributes, len(shape_of(x)), 1), output_dtype(node)

    def dequantize(x: Any, scale: Any, *zero: Any) -> Any:
        def element(*at: Any) -> Any:
            of_block = (*at[:axis], at[axis] // block, *at[axis + 1 :])
            stored = x(*at).astype("int32")
            shifted = stored - zero[0](*of_block).astype("int32") if zero else stored
            return (shifted.astype("float32") * scale(*of_block).astype("float32")).astype(dtype)

        return te.compute(x.shape, element, name="dequantize_blocks")

    return compute(builder, dequantize, x, scale, *([] if zero is None else [zero]), name="dequantize_blocks")


def convert_quantize(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """QuantizeLinear: round(x / scale), ties to even, + zero point, saturated."""
    block = attribute(attributes, "block_size", 0)
    if not block:
        return convert_by_tvm(builder, inputs, node)
    x, scale, zero = inputs[0], inputs[1], given(inputs, 2)
    axis, dtype = axis_of(attributes, len(shape_of(x)), 1), output_dtype(node)
    limits = np.iinfo(dtype)

    def quantize(x: Any, scale: Any, *zero: Any) -> Any:
        def element(*at: Any) -> Any:
            of_block = (*at[:axis], at[axis] // block, *at[axis + 1 :])
            level = tirx.nearbyint(x(*at).astype("float32") / scale(*of_block).astype("float32"))
            if zero:
                level = level + zero[0](*of_block).astype("float32")
            low, high = tirx.const(float(limits.min), "float32"), tirx.const(float(limits.max), "float32")
            return tirx.min(tirx.max(level, low), high).astype(dtype)

        return te.compute(x.shape, element, name="quantize_blocks")

    return compute(builder, quantize, x, scale, *([] if zero is None else [zero]), name="quantize_blocks")


CONVERTERS = {"DequantizeLinear": convert_dequantize, "QuantizeLinear": convert_quantize}
