"""DynamicQuantizeLinear by its kernel; ConvInteger, and MatMulInteger where no kernel serves, in int32 as ONNX says."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from tvm import relax

from graphopt.targets.tvm.kernels.dynamic_quantize import DynamicQuantize
from graphopt.targets.tvm.kernels.integer import describe
from graphopt.targets.tvm.operators.attributes import convert_by_tvm
from graphopt.targets.tvm.operators.tensors import Attributes, Tensors, cast, given, reshaped, shape_of
from graphopt.targets.tvm.quantized.conversion import call_kernel


def convert_dynamic_quantize(
    builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node
) -> Any:
    """DynamicQuantizeLinear: uint8 integers, scale and zero point."""
    size = math.prod(shape_of(inputs[0]))
    return call_kernel(builder, describe(DynamicQuantize(size, signed=False)), list(inputs), node)


def convert_conv_integer(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """ConvInteger: (x - zero point) ∗ (w - zero points of the output channels); outside of the image lies 0."""
    rank = len(shape_of(inputs[0]))
    factors = []
    for position, channels in ((0, 0), (1, 1)):
        wide, zero_point = builder.emit(cast(inputs[position], "int32")), given(inputs, position + 2)
        if zero_point is not None:
            count = math.prod(shape_of(zero_point))
            shape = (count, *[1] * (rank - 1)) if channels else [1] * rank
            wide = builder.emit(relax.op.subtract(wide, reshaped(cast(zero_point, "int32"), shape)))
        factors.append(wide)
    return convert_by_tvm(builder, factors, node, operator="Conv")


CONVERTERS = {"ConvInteger": convert_conv_integer, "DynamicQuantizeLinear": convert_dynamic_quantize}
