"""Softmax and LayerNormalization along the last axes as integer kernels."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.targets.tvm.kernels import integer_layer_norm, integer_softmax
from graphopt.targets.tvm.kernels.integer_layer_norm import IntegerLayerNorm
from graphopt.targets.tvm.kernels.integer_softmax import IntegerSoftmax, exponentials
from graphopt.targets.tvm.quantized.cluster import Cluster
from graphopt.targets.tvm.quantized.editor import Editor, shape_of
from graphopt.targets.tvm.quantized.emission import emit_kernel
from graphopt.targets.tvm.quantized.parameters import INT8, UINT8, Quantized, dequantized, real_constant

LARGEST = 2.0**15 - 256  # of a lifted result, as `may_be_lifted` has it
LARGEST_SHIFT = 2.0**29  # below what a product may be beyond (`multiplied`)


def rewrite_softmax(cluster: Cluster, editor: Editor) -> str | None:
    """Softmax: replaced, or why not."""
    node, x = cluster.node, _activation(cluster.node.inputs[0])
    if x is None:
        return "its input is not quantized to 8 bits"
    shape = shape_of(x.integers)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    last = len(shape) > 2 and axis % len(shape) == 1  # along the channels
    if axis not in (-1, len(shape) - 1) and not last:
        return "it is along neither the last axis nor the channels"
    if last:
        shape = (shape[0], *shape[2:], shape[1])
    if shape[-1] > integer_softmax.LONGEST:
        return f"its rows are longer than {integer_softmax.LONGEST}"
    scale = np.float32(1) / cluster.result.scale
    if not np.finfo(np.float32).tiny <= scale < LARGEST:
        return "its result has a scale that is no step of a probability"
    kernel = IntegerSoftmax(math.prod(shape[:-1]), shape[-1], float(scale), cluster.bounds)
    table = editor.constant(exponentials(shape[-1], float(x.scale)), f"{cluster.layer}.exponentials")
    source = editor.channels_last(x.integers) if last else editor.int8(x.integers)
    made = emit_kernel(cluster, editor, kernel, [source, table], shape)
    editor.replace(cluster.result.integers, made, channels_last=last)
    return None


def rewrite_layer_norm(cluster: Cluster, editor: Editor) -> str | None:
    """LayerNormalization: replaced, or why not."""
    node, x = cluster.node, _activation(cluster.node.inputs[0])
    if x is None:
        return "its input is not quantized to 8 bits"
    if any(output.name and output.uses() for output in node.outputs[1:]):
        return "its mean or deviation is used"
    shape = shape_of(x.integers)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    length = math.prod(shape[axis % len(shape) :])
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    of_row = integer_layer_norm.epsilon_of(epsilon, float(x.scale), length)
    if length > integer_layer_norm.LONGEST or not 0 < of_row < math.inf:
        return f"its rows are longer than {integer_layer_norm.LONGEST}, or its epsilon is 0"
    vectors = [_vector(value, length) for value in (*node.inputs[1:3], *[None] * (3 - len(node.inputs)))]
    gain, shift = (None if array is None else array / cluster.result.scale for array in vectors)
    if gain is None:
        return "its scale is not constant"
    if shift is None:
        if len(node.inputs) > 2 and node.inputs[2] is not None and node.inputs[2].name:
            return "its bias is not constant"
        shift = np.zeros(length, np.float32)
    if not np.isfinite(gain).all() or not (np.abs(shift) < LARGEST_SHIFT).all():
        return "its scale or bias is too large for the scale of its result"
    kernel = IntegerLayerNorm(math.prod(shape) // length, length, of_row, cluster.bounds)
    inputs = [editor.constant(gain, f"{cluster.layer}.gain"), editor.constant(shift, f"{cluster.layer}.shift")]
    made = emit_kernel(cluster, editor, kernel, [editor.int8(x.integers), *inputs], shape)
    editor.replace(cluster.result.integers, made, channels_last=False)
    return None


def _activation(value: ir.Value | None) -> Quantized | None:
    found = dequantized(value)
    return found if found is not None and found.integers.dtype in (INT8, UINT8) and found.per_tensor else None


def _vector(value: ir.Value | None, length: int) -> np.ndarray | None:
    """A constant, quantized or not, as float32 [length]."""
    array = real_constant(value)
    return None if array is None or array.size != length else array.reshape(-1)
