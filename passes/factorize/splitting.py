"""Splitting: a layer becomes two in the graph. Its node becomes the second factor, with its outputs and its bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant
from graphopt.passes.cleanup.constants import set_constant
from graphopt.passes.cleanup.rewiring import add_initializer, fresh_name
from graphopt.passes.factorize.layers import MARK
from graphopt.passes.factorize.low_rank import factors
from graphopt.passes.quantize.patches import from_matrix, to_matrix

Array = np.ndarray[Any, Any]

_WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")  # what the first factor takes over


def split(graph: ir.Graph, node: ir.Node, rank: int) -> None:
    """Replace W of a Conv, Gemm or MatMul by the product of rank `rank` that is nearest to it.

    A Conv: the same window to `rank` channels, and a 1×1 Conv. A Gemm: x V without a bias, and the Gemm. A MatMul: two.
    """
    weight = constant(node.inputs[1])
    if weight is None:
        raise ValueError(f"{node.op_type} '{node.name}' has no constant weight")
    left, right = factors(to_matrix(node, weight)[0], rank)
    outputs = left.shape[0]
    is_conv = node.op_type == "Conv"
    first_shape = (rank, *weight.shape[1:]) if is_conv else ()
    base = str(node.inputs[1].name) if node.inputs[1] is not None else str(node.outputs[0].name)
    first = from_matrix(node, right[None], first_shape).astype(np.float32)
    second = from_matrix(node, left[None], (outputs, rank, *(1,) * (weight.ndim - 2)) if is_conv else ())
    moved = [node.attributes[name] for name in _WINDOW if name in node.attributes]
    kept = [attribute for name, attribute in node.attributes.items() if name == "transB"]
    inner = ir.Value(name=fresh_name(graph, f"{node.outputs[0].name}/inner"), type=node.outputs[0].type)
    before = ir.Node(
        "",
        node.op_type,
        [node.inputs[0], add_initializer(graph, base, np.ascontiguousarray(first))],
        attributes=[*moved, *kept],
        outputs=[inner],
        name=f"{node.name or node.op_type}/first",
    )
    for name in _WINDOW:
        node.attributes.pop(name, None)
    if is_conv:
        node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", (1,) * (weight.ndim - 2))
    set_constant(node, 1, np.ascontiguousarray(second).astype(np.float32))
    node.replace_input_with(0, inner)
    graph.insert_before(node, before)
    before.metadata_props[MARK] = "first"
    node.metadata_props[MARK] = "second"
