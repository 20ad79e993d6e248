"""LpNormalization: x / ‖x‖ₚ along an axis, 0 where the norm is 0. LRN: x over a power of its neighbours' energy."""

from __future__ import annotations

import math
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
    reshaped,
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


def convert_lrn(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """LRN: x / (bias + alpha · mean of x² over the `size` nearest channels, absent ones as 0) to the power beta.

    A power of ¾, the default, is two square roots: libm's takes one element at a time.
    """
    x, size = inputs[0], attribute(attributes, "size", 1)
    shape = shape_of(x)
    alpha, beta, bias = (
        attribute(attributes, name, default) for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )

    def number(value: float) -> Any:
        return constant(np.array(value, dtype=dtype_of(x)))

    square = builder.emit(relax.op.multiply(x, x))
    lines = builder.emit(reshaped(square, (shape[0], 1, shape[1], math.prod(shape[2:]))))
    pads = [(size - 1) // 2, 0, size // 2, 0]
    mean = builder.emit(relax.op.nn.avg_pool2d(lines, (size, 1), (1, 1), pads, count_include_pad=True))
    energy = builder.emit(relax.op.multiply(builder.emit(reshaped(mean, shape)), number(alpha)))
    base = builder.emit(relax.op.add(energy, number(bias)))
    if beta == 0.75:
        root = builder.emit(relax.op.sqrt(base))
        return relax.op.divide(x, builder.emit(relax.op.multiply(root, builder.emit(relax.op.sqrt(root)))))
    return relax.op.divide(x, builder.emit(relax.op.power(base, number(beta))))


CONVERTERS = {"LRN": convert_lrn, "LpNormalization": convert_lp_normalization}
