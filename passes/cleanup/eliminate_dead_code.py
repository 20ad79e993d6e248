"""Remove what no output depends on.

A node is dead if no output of its graph and no live node uses what it makes; an initializer likewise. Subgraphs
are swept too. A live node gives up its optional outputs that nobody uses (the indices of MaxPool, the final states
of LSTM), functions that nothing calls go, and so do imports of operator sets without an operator.

The graph's inputs stay, used or not: they are its interface, and an initializer that is also an input is one.

onnx_ir's RemoveUnusedNodesPass does most of this, but leaves the initializers of subgraphs, deletes a
`training_mode` attribute, and reports no change when all it removed were outputs; so the sweep is written here, and
its passes for functions and imports are used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedOpsetsPass

from graphopt.ir.reading import is_standard, opset_of
from graphopt.passes.cleanup.rewiring import remove_if_unused
from graphopt.pipeline.base import Pass, PassContext, PassResult


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Remove unused nodes, initializers, optional outputs, functions and operator-set imports."""

    name: ClassVar[str] = "eliminate-dead-code"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        version = opset_of(model)
        bodies: list[ir.Graph] = [model.graph, *(function.graph for function in model.functions.values())]
        nodes = outputs = 0
        for body in bodies:
            removed = _sweep(body, version)
            nodes, outputs = nodes + removed[0], outputs + removed[1]
        initializers = sum(_drop_initializers(graph) for body in bodies for graph in (body, *body.subgraphs()))
        functions = len(model.functions)
        imports = sum(len(body.opset_imports) for body in bodies)
        RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        functions -= len(model.functions)
        RemoveUnusedOpsetsPass()(model)
        imports -= sum(len(body.opset_imports) for body in bodies)
        return PassResult(
            changed=bool(nodes or outputs or initializers or functions or imports),
            statistics={"nodes": nodes, "outputs": outputs, "initializers": initializers, "functions": functions},
        )


def _sweep(graph: ir.Graph, version: int) -> tuple[int, int]:
    """Remove dead nodes from the last to the first; how many nodes, and how many arguments of live ones, went."""
    nodes = arguments = 0
    for node in reversed(graph):
        if remove_if_unused(node):
            nodes += 1
            continue
        arguments += _drop_optional_outputs(node, version)
        for subgraph in _subgraphs(node):
            inner = _sweep(subgraph, version)
            nodes, arguments = nodes + inner[0], arguments + inner[1]
    return nodes, arguments


def _subgraphs(node: ir.Node) -> Iterable[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _drop_optional_outputs(node: ir.Node, version: int) -> int:
    """Leave out the optional outputs of a standard operator that nothing uses; how many went."""
    if not is_standard(node) or not onnx.defs.has(node.op_type, max_inclusive_version=version):
        return 0
    if node.op_type == "BatchNormalization":
        return 0  # the number of its outputs chooses between training and inference
    formal = onnx.defs.get_schema(node.op_type, max_inclusive_version=version).outputs
    dropped = 0
    for output, parameter in zip(node.outputs, formal, strict=False):
        optional = parameter.option == onnx.defs.OpSchema.FormalParameterOption.Optional
        if optional and output.name and not output.uses() and not output.is_graph_output():
            output.name = ""
            dropped += 1
    length = len(node.outputs)
    while length and not node.outputs[length - 1].name:
        length -= 1
    if dropped and length < len(node.outputs):
        node.resize_outputs(length)
    return dropped


def _drop_initializers(graph: ir.Graph) -> int:
    unused = [
        name
        for name, value in graph.initializers.items()
        if not (value.uses() or value.is_graph_output() or value.is_graph_input())
    ]
    for name in unused:
        del graph.initializers[name]
    return len(unused)
