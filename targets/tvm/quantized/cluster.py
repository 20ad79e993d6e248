"""A quantized layer: its node, what it reads, and the integers that its result becomes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.targets.tvm.kernels.requantize import Range
from graphopt.targets.tvm.quantized.parameters import INT8, UINT8, Quantized, constant, quantized

ACTIVATIONS = ("Relu", "Clip")  # bounds of a result, which are bounds of its integers too


@dataclass(frozen=True)
class Cluster:
    """`node`, then activations, then a QuantizeLinear that makes `result`; `bounds` holds the activations.

    made: the node's output that becomes the result.
    """

    node: ir.Node
    made: ir.Value
    result: Quantized
    bounds: Range

    @property
    def layer(self) -> str:
        """The name of the layer in reports."""
        return self.node.name or f"{self.node.op_type} of {self.result.integers.name}"


def find_cluster(quantize: ir.Node) -> Cluster | str:
    """The cluster that ends in a QuantizeLinear, or why there is none."""
    result = quantized(quantize)
    if result is None:
        return "the scale or zero point of its result is not constant"
    if result.integers.dtype not in (INT8, UINT8):
        return f"its result is quantized to {result.integers.dtype}, not to 8 bits"
    if not result.per_tensor:
        return "its result is quantized by channel"
    value, activations = quantize.inputs[0], []
    while True:
        node = None if value is None else value.producer()
        if value is None or node is None:
            return "an input of the model is quantized"
        if node.op_type == "DequantizeLinear":
            break
        if len(value.uses()) > 1 or value.is_graph_output():
            return "its float result is used elsewhere"
        if node.op_type not in ACTIVATIONS:
            break
        activations.append(node)
        value = node.inputs[0]
    zero_point = result.signed_zero_point
    low, high = -128, 127
    for activation in reversed(activations):
        bounds = _bounds(activation, result)
        if bounds is None:
            return f"the bounds of {activation.op_type} {activation.name!r} are not constant"
        low, high = (min(max(end, bounds[0]), bounds[1]) for end in (low, high))
    return Cluster(node, value, result, Range(zero_point, low, high))


def _bounds(activation: ir.Node, result: Quantized) -> tuple[int, int] | None:
    """The integers, as int8, that an activation's bounds become."""
    ends: list[float] = [0.0, np.inf]
    if activation.op_type == "Clip":
        ends = [-np.inf, np.inf]
        for i, name in enumerate(("min", "max")):
            if name in activation.attributes:
                ends[i] = activation.attributes[name].as_float()
            elif len(activation.inputs) > i + 1 and activation.inputs[i + 1] is not None:
                given = constant(activation.inputs[i + 1])
                if given is None or np.isnan(given).any():
                    return None
                ends[i] = float(given.reshape(-1)[0])
    zero_point, scale = result.signed_zero_point, result.scale
    low, high = (float(np.rint(np.float32(end) / scale)) + zero_point for end in ends)
    return int(np.clip(low, -128, 127)), int(np.clip(high, -128, 127))
