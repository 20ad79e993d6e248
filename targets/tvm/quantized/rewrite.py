"""Each cluster that has an integer kernel becomes a node for it, and so do products whose result stays in float.

The rest stays as it is, with a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphopt import ir as gir
from graphopt.targets.tvm.quantized.activation_products import (
    is_activation_product,
    rewrite_activation_product,
    rewrite_activation_product_to_float,
)
from graphopt.targets.tvm.quantized.affine import rewrite_affine
from graphopt.targets.tvm.quantized.cluster import ACTIVATIONS, Cluster, find_cluster
from graphopt.targets.tvm.quantized.editor import DOMAIN, Editor
from graphopt.targets.tvm.quantized.elementwise import rewrite_binary, rewrite_mean
from graphopt.targets.tvm.quantized.float_results import OPERATORS, rewrite_to_float
from graphopt.targets.tvm.quantized.functions import ELEMENTWISE, Functions
from graphopt.targets.tvm.quantized.movement import (
    MOVEMENTS,
    rewrite_concat,
    rewrite_max_pool,
    rewrite_movement,
    rewrite_resize,
    rewrite_split,
)
from graphopt.targets.tvm.quantized.normalizations import rewrite_layer_norm, rewrite_softmax
from graphopt.targets.tvm.quantized.pooling import rewrite_average_pool
from graphopt.targets.tvm.quantized.products import rewrite_convolution, rewrite_matrix_product
from graphopt.targets.tvm.quantized.rearrangements import rewrite_rearrangements
from graphopt.targets.tvm.quantized.residuals import fuse_residuals
from graphopt.targets.tvm.quantized.transposed import rewrite_transposed

CLUSTERS: dict[str, Callable[[Cluster, Editor], str | None]] = {
    **dict.fromkeys(MOVEMENTS, rewrite_movement),
    **dict.fromkeys(("Add", "Mul", "Sub"), rewrite_binary),
    **dict.fromkeys(("BatchNormalization", "Div", "PRelu"), rewrite_affine),
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean"), rewrite_mean),
    "AveragePool": rewrite_average_pool,
    "Concat": rewrite_concat,
    "Conv": rewrite_convolution,
    "ConvTranspose": rewrite_transposed,
    "Gemm": rewrite_matrix_product,
    "LayerNormalization": rewrite_layer_norm,
    "MatMul": rewrite_matrix_product,
    "MaxPool": rewrite_max_pool,
    "Resize": rewrite_resize,
    "Softmax": rewrite_softmax,
    "Split": rewrite_split,
}
LEFT_IN_FLOAT = "graphopt.left_in_float"  # key in a model's `meta`: the list of LeftInFloat that `rewrite` found


@dataclass(frozen=True)
class LeftInFloat:
    """A layer that reads quantized activations and computes in float all the same."""

    operator: str
    name: str
    reason: str


def rewrite(model: ir.Model) -> ir.Model:
    """`model` with integer kernels in place of clusters; `model` itself if nothing is quantized.

    The result has the same inputs and outputs. Its shapes are static.
    """
    if not any(node.op_type == "QuantizeLinear" for node in model.graph):
        return model
    model = gir.clone(model)
    editor = Editor(model.graph)
    functions = Functions(editor)
    reasons: dict[ir.Node, str] = {}
    for node in list(model.graph):
        if node.op_type != "QuantizeLinear" or node.domain not in ("", "ai.onnx"):
            continue
        editor.place = node
        cluster = find_cluster(node)
        computed = _computed(node)
        no_function = functions.rewrite(node)
        if no_function is None:
            continue
        if isinstance(cluster, str):
            reason: str | None = cluster
        elif not _is_static(cluster):
            reason = "its shapes are not static"
        else:
            operator = cluster.node.op_type
            replaced = rewrite_activation_product if is_activation_product(cluster.node) else CLUSTERS.get(operator)
            otherwise = no_function if operator in ELEMENTWISE else f"there is no integer kernel for {operator}"
            reason = replaced(cluster, editor) if replaced else otherwise
        if reason is not None and computed is not None:
            reasons[computed] = reason
    RemoveUnusedNodesPass()(model)
    for node in list(model.graph):
        if node.op_type in OPERATORS and _reads_quantized(node) and _has_static_shapes(node):
            editor.place = node
            to_float = rewrite_activation_product_to_float if is_activation_product(node) else rewrite_to_float
            reasons.setdefault(node, to_float(node, editor) or "")
    RemoveUnusedNodesPass()(model)
    rewrite_rearrangements(model.graph, editor)
    RemoveUnusedNodesPass()(model)
    fuse_residuals(model.graph, editor)
    model.graph.opset_imports[DOMAIN] = 1
    model.meta[LEFT_IN_FLOAT] = [
        LeftInFloat(node.op_type, node.name or f"{node.op_type}_{i}", reasons.get(node, "its result is not quantized"))
        for i, node in enumerate(model.graph)
        if _reads_quantized(node)
    ]
    return model


def _computed(quantize: ir.Node) -> ir.Node | None:
    """The node whose result a QuantizeLinear quantizes, behind its activations."""
    node = None if quantize.inputs[0] is None else quantize.inputs[0].producer()
    while node is not None and node.op_type in ACTIVATIONS and node.inputs[0] is not None:
        before = node.inputs[0].producer()
        if before is None or before.op_type == "DequantizeLinear":
            break
        node = before
    return node


def _is_static(cluster: Cluster) -> bool:
    return _has_static_shapes(cluster.node) and _has_static_shape(cluster.result.integers)


def _has_static_shapes(node: ir.Node) -> bool:
    return all(value is None or not value.name or _has_static_shape(value) for value in (*node.inputs, *node.outputs))


def _has_static_shape(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.is_static()


def _reads_quantized(node: ir.Node) -> bool:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") or node.domain == DOMAIN:
        return False
    producers = [value.producer() for value in node.inputs if value is not None]
    return any(
        producer is not None
        and producer.op_type == "DequantizeLinear"
        and producer.inputs[0] is not None
        and ir.convenience.get_const_tensor(producer.inputs[0]) is None
        for producer in producers
    )
