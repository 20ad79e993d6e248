"""The grid that a pass of quantization will find for a weight that lies on none yet.

`quantize` takes a scale for each output channel or one for all; `quantize-weights` one for each block of neighbours
along the features. Both find a grid again when the weights lie on it: they try scales that make the largest magnitude a
whole number of steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.observers import channel_ends
from graphopt.passes.quantize.arithmetic import WEIGHT_MAX, weight_parameters
from graphopt.passes.quantize.blocks import quantize_blocks
from graphopt.passes.quantize.patches import to_matrix
from graphopt.passes.quantize.quantize_weights import QuantizeWeights
from graphopt.passes.quantize.rounding import Grid

Array = np.ndarray[Any, Any]

_BITS4 = (-8, 7)


def grid_of_quantize(node: ir.Node, weight: Array, axis: int | None) -> Grid:
    """Of `quantize`, with its default observer of weights.

    Args:
        axis: of the output channels; None gives all one scale.
    """
    scale = weight_parameters(channel_ends(weight, axis, mse=True), axis).scale.astype(np.float64)
    if axis is not None:
        scale = scale.reshape(*to_matrix(node, weight).shape[:2], 1)
    return Grid(scale, -WEIGHT_MAX, WEIGHT_MAX)


def grid_of_quantize_weights(node: ir.Node, weight: Array, bits: int, block: int) -> Grid | str:
    """Of `quantize-weights`, symmetric, or the reason why that leaves the weight alone.

    Args:
        bits: 8 or 4.
        block: features that share a scale; 0 for all of an output.
    """
    if node.op_type not in ("MatMul", "Gemm"):
        return f"quantize-weights leaves {node.op_type} in float"
    if weight.size < QuantizeWeights.smallest:
        return f"its weight has {weight.size} elements, fewer than {QuantizeWeights.smallest}"
    matrix = to_matrix(node, weight)[0]
    found = quantize_blocks(matrix, 1, block, bits=bits, symmetric=True)
    scales = found.scale.repeat(found.block, axis=1)[None, :, : matrix.shape[1]]
    low, high = (-WEIGHT_MAX, WEIGHT_MAX) if bits == 8 else _BITS4
    return Grid(scales.astype(np.float64), low, high)
