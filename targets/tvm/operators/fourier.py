"""DFT as a product with a constant matrix of cosines and sines: exact for any length, O(n²).

X[k] = Σ_t x[t] · e^(−2πi·k·t/n), inverse with + and divided by n; a complex number is a last axis of two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax

from graphopt.targets.tvm.operators.attributes import opset_of
from graphopt.targets.tvm.operators.reshaping import output_shape
from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    constant,
    dtype_of,
    must_know,
    reshaped,
    shape_of,
)


def convert_dft(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """DFT-17 (axis as an attribute) and -20 (as an input): real or complex, one-sided or not, in both directions."""
    x = inputs[0]
    shape, made = shape_of(x), output_shape(node)
    axis_input = must_know(node, inputs, 2, "axis")
    default = attribute(attributes, "axis", 1 if opset_of(node) < 20 else -2)
    axis = int(default if axis_input is None else axis_input.item()) % len(shape)
    length = must_know(node, inputs, 1, "dft_length")
    inverse, onesided = bool(attribute(attributes, "inverse", 0)), bool(attribute(attributes, "onesided", 0))
    if length is not None:
        n = int(length.item())
    else:
        n = 2 * (shape[axis] - 1) if inverse and onesided else shape[axis]
    matrix = _matrix(n, min(shape[axis], n), shape[-1], made[axis], made[-1], inverse, onesided)
    rest = [k for k in range(len(shape) - 1) if k != axis]
    order = [*rest, axis, len(shape) - 1]
    moved = builder.emit(relax.op.permute_dims(x, order))
    rows = math.prod(shape[k] for k in rest)
    used = matrix.shape[0]
    flat = builder.emit(reshaped(moved, (rows, shape[axis] * shape[-1])))
    if used < shape[axis] * shape[-1]:
        flat = builder.emit(relax.op.strided_slice(flat, [1], [0], [used]))
    product = builder.emit(relax.op.matmul(flat, constant(matrix.astype(dtype_of(x)))))
    back = builder.emit(reshaped(product, (*(shape[k] for k in rest), made[axis], made[-1])))
    return relax.op.permute_dims(back, [int(k) for k in np.argsort(order)])


def _matrix(n: int, taken: int, parts: int, made: int, made_parts: int, inverse: bool, onesided: bool) -> np.ndarray:
    """The map from [taken, parts] to [made, made_parts], both flattened; parts are real and imaginary."""
    angle = 2 * np.pi * np.outer(np.arange(taken), np.arange(made)) / n * (1 if inverse else -1)
    real, imaginary = np.cos(angle), np.sin(angle)
    if inverse:
        factor = np.full((taken, 1), 1 / n)
        if onesided:  # the other half is the conjugate: it doubles the real part, but for what has no other half
            factor[1 : (n + 1) // 2] *= 2
        real, imaginary = real * factor, imaginary * factor
    blocks = np.array([[real, imaginary], [-imaginary, real]])[:parts, :made_parts]
    return blocks.transpose(2, 0, 3, 1).reshape(taken * parts, made * made_parts)


CONVERTERS = {"DFT": convert_dft}
