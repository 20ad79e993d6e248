"""LpNormalization: x / ‖x‖ₚ along an axis, 0 where the norm is 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax

from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    axis_of,
    constant,
    dtype_of,
    shape_of,
    unsupported,
)


def convert_lp_normalization(
    builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node
) -> Any:
    """LpNormalization with p = 1 or 2."""
    x, p = inputs[0], attribute(attributes, "p", 2)
    if p not in (1, 2):
        raise unsupported(node, f"its p is {p}", "known are 1 and 2")
    axis = axis_of(attributes, len(shape_of(x)), -1)
    powers = builder.emit(relax.op.abs(x) if p == 1 else relax.op.multiply(x, x))
    total = builder.emit(relax.op.sum(powers, axis, keepdims=True))
    norm = total if p == 1 else builder.emit(relax.op.sqrt(total))
    zero = constant(np.zeros((), dtype=dtype_of(x)))
    is_zero = builder.emit(relax.op.equal(norm, zero))
    return relax.op.where(is_zero, zero, builder.emit(relax.op.divide(x, norm)))


CONVERTERS = {"LpNormalization": convert_lp_normalization}
