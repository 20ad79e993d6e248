"""Products of integers whose result stays a float32: what ends a quantized network, or enters a layer left in float.

    y_n = s_x s_n (Σ q_w' q_x  -  z_x Σ q_w') + b_n

The sums are those of `products`; nothing is rounded behind them.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.targets.tvm.kernels.integer import describe
from graphopt.targets.tvm.kernels.integer_product import PANEL, IntegerProduct, pack_weights
from graphopt.targets.tvm.kernels.requantize import Range
from graphopt.targets.tvm.kernels.window import Window
from graphopt.targets.tvm.quantized.conversion import KERNEL
from graphopt.targets.tvm.quantized.editor import DOMAIN, Editor, put_in_place, shape_of
from graphopt.targets.tvm.quantized.parameters import Quantized, dequantized, real_constant
from graphopt.targets.tvm.quantized.products import (
    NO_VECTOR,
    scaled_weights,
    start_of_sums,
    unfit_convolution,
    unfit_factors,
    unfit_matrix_product,
    window_of,
)

OPERATORS = ("Conv", "Gemm", "MatMul")


def rewrite_to_float(node: ir.Node, editor: Editor) -> str | None:
    """A Conv, Gemm or MatMul on integers with a float result: replaced, or why not. Its shapes are static."""
    x, w = dequantized(node.inputs[0]), dequantized(node.inputs[1])
    reason = unfit_factors(x, w)
    if reason is not None or x is None or w is None:
        return reason
    convolution = node.op_type == "Conv"
    reason = unfit_convolution(x) if convolution else unfit_matrix_product(node, x, w)
    if reason is not None:
        return reason
    if convolution and node.attributes.get_int("group", 1) > 1:
        return "it is a grouped convolution, and its result is not quantized"
    axis = 0 if convolution or node.attributes.get_int("transB", 0) == 1 else 1
    found = scaled_weights(x, w, axis)
    if isinstance(found, str):
        return found
    weights, scale = found
    addend = _bias(node, len(scale))
    start = start_of_sums(weights, np.zeros(len(scale), np.int64), x.signed_zero_point)
    if isinstance(addend, str) or isinstance(start, str):
        return addend if isinstance(addend, str) else str(start)
    window, packed, source = _operands(node, x, w, weights.astype(np.int8), editor)
    product = IntegerProduct(window, len(scale), Range(0), bool(weights.min(initial=0) > -128), "float32")
    padding = (0, product.panels * PANEL - len(scale))
    name = node.name or f"{node.op_type} of {node.outputs[0].name}"
    vectors = {"start": start, "scale": scale, "addend": addend}
    constants = [editor.constant(packed, f"{name}.weights")]
    constants += [editor.constant(np.pad(vector, padding), f"{name}.{kind}") for kind, vector in vectors.items()]
    shape = shape_of(node.outputs[0])
    made = editor.add(
        "IntegerProduct",
        [source, *constants],
        ir.DataType.FLOAT,
        (shape[0], *shape[2:], shape[1]) if convolution else shape,
        name=f"{name}.product",
        attributes={KERNEL: describe(product)},
        layer=name,
        domain=DOMAIN,
    )
    if convolution:
        order = {"perm": [0, len(shape) - 1, *range(1, len(shape) - 1)]}
        made = editor.add("Transpose", [made], ir.DataType.FLOAT, shape, name=f"{name}.first", attributes=order)
    replaced = node.outputs[0]
    put_in_place(replaced, made)
    return None


def _operands(
    node: ir.Node, x: Quantized, w: Quantized, weights: np.ndarray, editor: Editor
) -> tuple[Window, np.ndarray, ir.Value]:
    """What the kernel runs over, its packed weights and its input."""
    shape = shape_of(x.integers)
    if node.op_type == "Conv":
        window = window_of(node, shape, shape_of(w.integers)[2:], x.signed_zero_point)
        return window, pack_weights(np.moveaxis(weights, 1, -1), window), editor.channels_last(x.integers)
    *rows, depth = shape
    window = Window((1, 1, math.prod(rows), depth), padding=x.signed_zero_point)
    return window, pack_weights(weights.reshape(-1, 1, 1, depth), window), editor.int8(x.integers)


def _bias(node: ir.Node, channels: int) -> np.ndarray | str:
    """float32 [channels]: 0 without a bias."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None or not value.name:
        return np.zeros(channels, np.float32)
    array = real_constant(value)
    if array is None:
        return "its bias is not constant"
    if array.size not in (1, channels) or (array.size > 1 and array.shape[-1] != array.size):
        return NO_VECTOR
    return np.broadcast_to(array.reshape(-1), (channels,)).astype(np.float32)
