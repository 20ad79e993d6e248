"""AveragePool in integers: a depthwise convolution whose weights are all 1.

    y = s_x / (s_y · n) · Σ (x - z)  over the n elements of a window

Padding that counts is padding with z, which adds nothing to the sum. A window that is the whole image is a mean.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.targets.tvm.kernels.integer_depthwise import IntegerDepthwise, pack_depthwise_weights
from graphopt.targets.tvm.kernels.requantize import ROUNDER_BITS, may_be_lifted
from graphopt.targets.tvm.quantized.cluster import Cluster
from graphopt.targets.tvm.quantized.editor import Editor, shape_of
from graphopt.targets.tvm.quantized.elementwise import rewrite_mean
from graphopt.targets.tvm.quantized.emission import emit_kernel
from graphopt.targets.tvm.quantized.parameters import INT8, UINT8, constant, dequantized
from graphopt.targets.tvm.quantized.products import window_of

MOST_TAPS = 25  # of a window that is unrolled


def rewrite_average_pool(cluster: Cluster, editor: Editor) -> str | None:
    """AveragePool in one or two dimensions: replaced, or why not."""
    node, x = cluster.node, dequantized(cluster.node.inputs[0])
    if x is None or x.integers.dtype not in (INT8, UINT8) or not x.per_tensor or constant(x.integers) is not None:
        return "its input is not quantized to 8 bits with one scale"
    shape, kernel = shape_of(x.integers), tuple(node.attributes["kernel_shape"].as_ints())
    if len(shape) not in (3, 4):
        return f"it has {len(shape) - 2} spatial dimensions; integer kernels have one or two"
    if _flag(node, "ceil_mode"):
        return "its windows may reach beyond the image (ceil_mode)"
    window = window_of(node, shape, kernel, x.signed_zero_point)
    if any(window.pads) and not _flag(node, "count_include_pad"):
        return "its windows at the border average fewer elements"
    if kernel == shape[2:] and not any(window.pads):
        return rewrite_mean(cluster, editor)
    taps, channels = math.prod(kernel), shape[1]
    if taps > MOST_TAPS:
        return f"its window has {taps} elements; integer kernels have {MOST_TAPS} at most"
    multiplier = np.float32(float(x.scale) / (float(cluster.result.scale) * taps))
    if not np.finfo(np.float32).tiny <= multiplier <= np.finfo(np.float32).max:
        return "the ratio of its scales is not a normal number"
    start = -x.signed_zero_point * taps
    multipliers = np.full(channels, multiplier, np.float32)
    lifted = may_be_lifted(np.full(channels, abs(start) + 128 * taps), multipliers)
    constants = [
        editor.constant(pack_depthwise_weights(np.ones((channels, taps), np.int8)), f"{cluster.layer}.weights"),
        editor.constant(np.full(channels, start + (ROUNDER_BITS if lifted else 0), np.int32), f"{cluster.layer}.bias"),
        editor.constant(multipliers, f"{cluster.layer}.multipliers"),
    ]
    given = shape_of(cluster.result.integers)
    depthwise = IntegerDepthwise(window, cluster.bounds, lifted=lifted)
    source = editor.channels_last(x.integers)
    made = emit_kernel(cluster, editor, depthwise, [source, *constants], (given[0], *given[2:], given[1]))
    editor.replace(cluster.result.integers, made, channels_last=True)
    return None


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].as_int())
