"""A residual added to, subtracted from or multiplied with a product's result while that is in registers.

The product is rounded to int8 as before, and then combined as its own kernel would do it: the same bits, without the
way through memory. That needs the product to be read by nothing else.
"""

from __future__ import annotations

import json
from dataclasses import replace

import onnx_ir as ir

from graphopt.targets.tvm.kernels.integer import describe, read
from graphopt.targets.tvm.kernels.integer_elementwise import IntegerBinary
from graphopt.targets.tvm.kernels.integer_product import IntegerProduct
from graphopt.targets.tvm.quantized.conversion import KERNEL
from graphopt.targets.tvm.quantized.editor import DOMAIN, Editor, put_in_place, shape_of
from graphopt.targets.tvm.quantized.parameters import INT8

LAYERS = "graphopt.layers"  # key in a node's metadata: names of all layers that it computes, as JSON


def fuse_residuals(graph: ir.Graph, editor: Editor) -> None:
    """Let each product compute the element-wise operator that alone reads it."""
    for node in list(graph):
        if node.domain == DOMAIN and node.op_type == IntegerBinary.__name__:
            editor.place = node
            _fuse(node, editor)


def _fuse(node: ir.Node, editor: Editor) -> None:
    binary = read(node.attributes[KERNEL].as_string())
    a, b = node.inputs
    if binary.b_spread or a is None or b is None:
        return
    for value, residual, own in ((a, b, 0), (b, a, 1)):
        producer = value.producer()
        if producer is None or not _may_go_on(producer):
            continue
        product = read(producer.attributes[KERNEL].as_string())
        factors = binary.factors if own == 0 else binary.factors[::-1]
        made = editor.add(
            producer.op_type,
            [*producer.inputs, residual],
            INT8,
            shape_of(node.outputs[0]),
            name=f"{node.name}.int8",
            attributes={KERNEL: describe(replace(product, combination=replace(binary, factors=factors)))},
            layer=node.name,
            domain=DOMAIN,
        )
        fused = made.producer()
        assert fused is not None
        fused.metadata_props[LAYERS] = json.dumps([producer.name, node.name])
        put_in_place(node.outputs[0], made)
        editor.graph.remove([node, producer], safe=True)
        return


def _may_go_on(producer: ir.Node) -> bool:
    """Whether a node is a product to int8 that one node reads."""
    if producer.domain != DOMAIN or producer.op_type != IntegerProduct.__name__:
        return False
    result = producer.outputs[0]
    if result.is_graph_output() or len(result.uses()) != 1:
        return False
    product = read(producer.attributes[KERNEL].as_string())
    return product.result == "int8" and product.combination is None


def layers_of(node: ir.Node) -> list[str]:
    """The names of the layers that a node computes."""
    kept = node.metadata_props.get(LAYERS)
    return [node.name or ""] if kept is None else json.loads(kept)
