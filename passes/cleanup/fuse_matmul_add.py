"""Fuse MatMul and the Add of a constant bias into a Gemm: A·B + c.

Only where both operands are known to be matrices, since Gemm takes no others; c is a scalar, a row of the result's
width, or a column or matrix of its size. An Add of something computed is a residual connection and stays. A Gemm
that has no bias gets the constant as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.reading import constant, is_standard
from graphopt.passes.cleanup.constants import layer_name
from graphopt.passes.cleanup.rewiring import replace
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class FuseMatmulAdd(Pass):
    """Fuse MatMul, or a Gemm without bias, and the Add of a constant into one Gemm."""

    name: ClassVar[str] = "fuse-matmul-add"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fuse in the main graph and its subgraphs."""
        declined = list[Declined]()
        fused = 0
        for node in list(model.graph.all_nodes()):
            pair = _candidate(node)
            if pair is None:
                continue
            reason = _why_not(node, *pair)
            if reason:
                declined.append(Declined(layer_name(node), reason))
            else:
                _fuse(node, *pair)
                fused += 1
        return PassResult(changed=fused > 0, statistics={"fused": fused}, declined=tuple(declined))


def _candidate(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The MatMul (or Gemm without bias) and the constant that an Add sums, if it does."""
    if not is_standard(node, "Add") or len(node.inputs) != 2:
        return None
    for product, bias in (tuple(node.inputs), tuple(reversed(node.inputs))):
        producer = None if product is None else product.producer()
        if producer is None or bias is None or constant(bias) is None:
            continue
        lacks_bias = len(producer.inputs) < 3 or producer.inputs[2] is None
        if is_standard(producer, "MatMul") or (is_standard(producer, "Gemm") and lacks_bias):
            return producer, bias
    return None


def _why_not(node: ir.Node, product: ir.Node, bias: ir.Value) -> str:
    output = product.outputs[0]
    what = f"{product.op_type} '{product.name}'"
    if product.graph is not node.graph:
        return f"{what} is outside of its subgraph"
    if len(output.uses()) > 1 or output.is_graph_output():
        return f"the output of {what} is also used elsewhere"
    if output.dtype not in _FLOATS:
        return f"{what} does not compute with floating-point numbers"
    ranks = [None if value is None or value.shape is None else len(value.shape) for value in product.inputs[:2]]
    if None in ranks:
        return f"the rank of an operand of {what} is unknown"
    if ranks != [2, 2]:
        return f"{what} multiplies tensors of ranks {ranks[0]} and {ranks[1]}, a Gemm takes matrices"
    array, shape = constant(bias), output.shape
    if array is None or shape is None or array.ndim > 2:
        return f"its constant has rank {array.ndim if array is not None else 'unknown'}, expected at most 2"
    for size, dim in zip(reversed(array.shape), reversed(shape.dims), strict=False):
        if size not in (1, dim):
            return f"its constant of shape {list(array.shape)} would broadcast the product"
    return ""


def _fuse(node: ir.Node, product: ir.Node, bias: ir.Value) -> None:
    """Make the product a Gemm with the bias, in the place of `node`: the bias may be known only there."""
    gemm = ir.Node(
        "",
        "Gemm",
        [*product.inputs[:2], bias],
        [attribute for name, attribute in product.attributes.items() if name != "beta"],
        name=product.name or node.name,
        doc_string=product.doc_string,
        metadata_props=dict(product.metadata_props),
    )
    gemm.outputs[0].name = product.outputs[0].name
    gemm.outputs[0].type, gemm.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    product.outputs[0].name = None
    if not isinstance(node.graph, ir.Graph):
        raise TypeError(f"Add '{node.name}' is not in a graph")
    node.graph.insert_before(node, gemm)
    replace(node.outputs[0], gemm.outputs[0])
    node.graph.remove([node, product], safe=True)
