"""Values of which the network reads on only what a maximum over all places picks: their extremes are not cut.

The mean squared error weighs cutting rare large values against finer levels for all the others. Where a global maximum
follows, the others are thrown away and the rare ones are what is left, so their error counts alone.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir.reading import constant, is_standard

_MAXIMA = ("GlobalMaxPool", "ReduceMax", "ArgMax", "TopK")
_ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Relu", "LeakyRelu", "PRelu", "Elu", "Clip", "Erf", "Gelu", "HardSwish"),
    *("HardSigmoid", "Sigmoid", "Tanh", "BatchNormalization"),
)
_MOVING = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Pad", "MaxPool", "Concat")
_PRODUCTS = ("Conv", "Gemm", "MatMul")


def feeding_maxima(graph: ir.Graph) -> frozenset[ir.Value]:
    """The values of the main graph from which every way leads to a maximum over places, through layers with constant
    weights, functions of single numbers and moves alone.
    """
    found: set[ir.Value] = set()
    for values in (*(node.outputs for node in reversed(graph)), graph.inputs):
        found |= {value for value in values if _leads_there(value, found)}
    return frozenset(found)


def _leads_there(value: ir.Value, found: set[ir.Value]) -> bool:
    if value.is_graph_output() or not value.uses():
        return False
    return all(
        is_standard(node, *_MAXIMA) or (_passes_on(node) and all(output in found for output in node.outputs))
        for node in value.consumers()
    )


def _passes_on(node: ir.Node) -> bool:
    if is_standard(node, *_PRODUCTS):
        return any(constant(value) is not None for value in node.inputs)
    return is_standard(node, *_ELEMENTWISE, *_MOVING)
