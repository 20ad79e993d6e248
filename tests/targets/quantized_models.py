"""Quantized layers as small models, and what the integer path must compute of them, in numpy.

The reference is the definition that `targets/tvm/kernels/requantize.py` gives, written once more, without its tricks:
sums in int64, then float32(sum) · multiplier, rounded half to even, plus the zero point, bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphopt import ir as gir

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Activation:
    """An activation's type and quantization."""

    dtype: Any
    scale: float
    zero_point: int

    def limits(self) -> tuple[int, int]:
        return int(np.iinfo(self.dtype).min), int(np.iinfo(self.dtype).max)


def requantized(
    sums: Array, multiplier: Array, y: Activation, low: int | None = None, high: int | None = None
) -> Array:
    """y's integers for int32 sums with channels along the last axis."""
    assert np.abs(sums).max(initial=0) < 2**31
    rounded = np.rint(sums.astype(np.int32).astype(np.float32) * multiplier.astype(np.float32)).astype(np.int64)
    limits = y.limits()
    bounds = (limits[0] if low is None else low, limits[1] if high is None else high)
    return np.clip(rounded + y.zero_point, *bounds).astype(y.dtype)


def convolution_sums(
    x: Array, weights: Array, zero_point: int, strides: Any, pads: Any, dilations: Any, group: int
) -> Array:
    """Σ (x - z) w over NCHW and OIHW integers: int64 [batch, height, width, channels]."""
    top, left, bottom, right = pads
    shifted = np.pad(x.astype(np.int64) - zero_point, ((0, 0), (0, 0), (top, bottom), (left, right)))
    outputs, depth, *kernel = weights.shape
    height, width = (
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(shifted.shape[2:], kernel, dilations, strides, strict=True)
    )
    sums = np.zeros((x.shape[0], height, width, outputs), np.int64)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows, columns = i * dilations[0], j * dilations[1]
            seen = shifted[:, :, rows:, columns:][:, :, :: strides[0], :: strides[1]][:, :, :height, :width]
            for channel in range(outputs):
                first = channel // (outputs // group) * depth
                factor = weights[channel, :, i, j].astype(np.int64)
                sums[..., channel] += np.einsum("nchw,c->nhw", seen[:, first : first + depth], factor)
    return sums


def layer_model(
    operator: str,
    x: Array,
    quantized_x: Activation,
    weights: Array,
    weight_scale: Array,
    bias: Array | None,
    quantized_y: Activation,
    *,
    weight_axis: int,
    activation: tuple[str, tuple[float, ...]] | None = None,
    **attributes: Any,
) -> Any:
    """x and y are integers; between them lie DequantizeLinear, the operator with its weights, and QuantizeLinear."""
    zero = np.zeros_like(weight_scale, dtype=weights.dtype)
    arrays = {
        "sx": np.float32(quantized_x.scale),
        "zx": np.array(quantized_x.zero_point, quantized_x.dtype),
        "w": weights,
        "sw": weight_scale.astype(np.float32),
        "zw": zero,
        "sy": np.float32(quantized_y.scale),
        "zy": np.array(quantized_y.zero_point, quantized_y.dtype),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "sx", "zx"], ["x_f"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["w_f"], axis=weight_axis),
    ]
    inputs = ["x_f", "w_f"]
    if bias is not None:
        arrays["b"] = bias
        arrays["sb"] = (np.float32(quantized_x.scale) * weight_scale.astype(np.float32)).astype(np.float32)
        arrays["zb"] = np.zeros_like(arrays["sb"], dtype=np.int32)
        nodes.append(helper.make_node("DequantizeLinear", ["b", "sb", "zb"], ["b_f"], axis=0))
        inputs.append("b_f")
    nodes.append(helper.make_node(operator, inputs, ["y_f"], name="layer", **attributes))
    last = "y_f"
    if activation is not None:
        name, ends = activation
        for i, end in enumerate(ends):
            arrays[f"end{i}"] = np.float32(end)
        nodes.append(helper.make_node(name, [last, *(f"end{i}" for i in range(len(ends)))], ["a_f"]))
        last = "a_f"
    nodes.append(helper.make_node("QuantizeLinear", [last, "sy", "zy"], ["y"]))
    types = [helper.np_dtype_to_tensor_dtype(np.dtype(q.dtype)) for q in (quantized_x, quantized_y)]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", types[0], x.shape)],
        [helper.make_tensor_value_info("y", types[1], None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    model = gir.load(proto)
    gir.refresh_shapes(model)
    return model


__all__ = ["Activation", "convolution_sums", "layer_model", "requantized"]
