"""Weights that are palettes, as plain constants: kernels pack them, and the library's coder finds the palette again."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphopt import ir as gir
from graphopt.ir.palettes import palette_of


def expand_palettes(model: ir.Model) -> ir.Model:
    """`model` with constants for its palettes; `model` itself if it has none."""
    if all(palette_of(node.outputs[0]) is None for node in model.graph):
        return model
    model = gir.clone(model)
    graph = model.graph
    for i, node in enumerate(graph):
        node.name = node.name or f"{node.op_type}_{i}"  # as reports number it: the nodes before it may go
    for node in graph:
        palette = palette_of(node.outputs[0])
        value = node.outputs[0]
        if palette is None or value.is_graph_output():
            continue
        name, value.name = value.name, None
        weight = ir.Value(name=name, type=value.type, shape=ir.Shape(palette.shape))
        weight.const_value = ir.Tensor(palette.array(), name=name)
        graph.register_initializer(weight)
        value.replace_all_uses_with(weight)
    RemoveUnusedNodesPass()(model)  # those that made the weights, codebooks and indices
    return model
