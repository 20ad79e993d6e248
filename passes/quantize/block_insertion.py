"""Blocks of integers in a graph, alone or with a correction of low rank, and what the nodes of one take in a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.passes.cleanup.rewiring import add_initializer, fresh_name
from graphopt.passes.quantize.blocks import Blocks
from graphopt.passes.quantize.low_rank_correction import Correction, zero_correction
from graphopt.passes.quantize.naming import fresh_node_name

Array = np.ndarray[Any, Any]


def insert_blocks(graph: ir.Graph, value: ir.Value, blocks: Blocks, block_size: int) -> ir.Value:
    """The output of a DequantizeLinear at the start of the graph."""
    name = value.name or "weight"
    scale, zero_point = blocks.scale, blocks.zero_point
    attributes = {"axis": blocks.axis}
    if block_size:
        attributes["block_size"] = block_size
    else:  # a scale for each index of the other axis
        attributes["axis"] = 1 - blocks.axis
        scale = scale.reshape(-1)
        zero_point = None if zero_point is None else zero_point.reshape(-1)
    inputs = [
        add_initializer(graph, f"{name}/{blocks.integers.dtype}", blocks.integers),
        add_initializer(graph, f"{name}/scale", scale),
    ]
    if zero_point is not None:
        inputs.append(add_initializer(graph, f"{name}/zero_point", zero_point))
    node = ir.node("DequantizeLinear", inputs, attributes=attributes, name=fresh_node_name(graph, f"{name}/dequantize"))
    output = node.outputs[0]
    output.name = fresh_name(graph, f"{name}/dequantized")
    output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(blocks.integers.shape)
    graph.insert_before(graph[0], node)
    return output


def insert_correction(graph: ir.Graph, node: ir.Node, value: ir.Value, made: Correction) -> None:
    """x R + (x U) V in place of the node's result."""
    result, read = node.outputs[0], node.inputs[0]
    node.replace_input_with(1, insert_blocks(graph, value, made.residual, made.residual.block))
    first, second = (insert_blocks(graph, value, each, each.block) for each in (made.first, made.second))
    name, called = node.name or node.op_type, str(result.name)
    inner = ir.node("MatMul", [read, first], name=fresh_node_name(graph, f"{name}/first"))
    outer = ir.node("MatMul", [inner.outputs[0], second], name=fresh_node_name(graph, f"{name}/second"))
    add = ir.node("Add", [result, outer.outputs[0]], name=fresh_node_name(graph, f"{name}/corrected"))
    for each in (inner, outer, add):
        each.outputs[0].type, each.outputs[0].shape = result.type, result.shape
    if result.shape is not None:
        inner.outputs[0].shape = ir.Shape([*result.shape.dims[:-1], made.rank])
    inner.outputs[0].name = fresh_name(graph, f"{called}/correction/inner")
    outer.outputs[0].name = fresh_name(graph, f"{called}/correction")
    result.name = fresh_name(graph, f"{called}/uncorrected")
    add.outputs[0].name = called
    result.replace_all_uses_with(add.outputs[0], replace_graph_outputs=True)
    add.replace_input_with(0, result)
    graph.insert_after(node, [inner, outer, add])


def bytes_of_nodes(node: ir.Node, weight: Array, plain: Blocks) -> int:
    """What a correction adds to a file beside its weights: nodes, names, types, as they are serialized.

    Measured on a graph of `node` alone, with `plain` and with a correction of rank 1 in place of `weight`.
    """
    sizes: list[int] = []
    for made in (plain, zero_correction(plain)):
        alone, copy, value = _alone(node, weight)
        if isinstance(made, Correction):
            insert_correction(alone, copy, value, made)
        else:
            copy.replace_input_with(1, insert_blocks(alone, value, made, made.block))
        alone.initializers.pop(str(value.name))
        proto = ir.serde.serialize_graph(alone)
        sizes.append(int(proto.ByteSize()) - made.nbytes)
    return sizes[1] - sizes[0]


def _alone(node: ir.Node, weight: Array) -> tuple[ir.Graph, ir.Node, ir.Value]:
    """A graph of a copy of the node, with names and types as they are; the copy, and its weight."""
    read, weight_value = node.inputs[0], node.inputs[1]
    given = ir.Value(
        name=read.name if read else "x", type=read.type if read else None, shape=read.shape if read else None
    )
    value = ir.Value(name=weight_value.name if weight_value else "w", const_value=ir.Tensor(weight))
    copy = ir.Node("", node.op_type, [given, value], attributes=list(node.attributes.values()), name=node.name)
    result = node.outputs[0]
    copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = result.name, result.type, result.shape
    named = [ir.Value(name=each.name) for each in (node.graph.outputs if node.graph is not None else ())]
    graph = ir.Graph([given], named, nodes=[copy], initializers=[value], name="alone")
    return graph, copy, value
