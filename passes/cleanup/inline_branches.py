"""Put the branch taken in the place of an If whose condition is constant."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant, is_standard
from graphopt.passes.cleanup.constants import remove_unused_constant
from graphopt.passes.cleanup.rewiring import may_take_name_of, replace


def inline_branches(model: ir.Model) -> int:
    """Inline in every graph of `model`, the outer ones first; the number of If nodes that are gone."""
    count = 0
    while node := _next_constant_if(model):
        _inline(model, node)
        count += 1
    return count


def _next_constant_if(model: ir.Model) -> ir.Node | None:
    for node in model.graph.all_nodes():
        if is_standard(node, "If"):
            condition = constant(node.inputs[0])
            if condition is not None and condition.size == 1:
                return node
    return None


def _inline(model: ir.Model, node: ir.Node) -> None:
    condition, graph = node.inputs[0], node.graph
    value = constant(condition)
    if value is None or condition is None or not isinstance(graph, ir.Graph):
        raise TypeError(f"If '{node.name}' has no constant condition")
    taken, dropped = ("then_branch", "else_branch") if bool(np.all(value)) else ("else_branch", "then_branch")
    branch = node.attributes[taken].as_graph()
    results = list(branch.outputs)
    branch.outputs.clear()
    _detach(node.attributes[dropped].as_graph())

    names = _names(model, except_for=branch)
    initializers = list(branch.initializers.values())
    branch.initializers.clear()
    nodes = list(branch)
    branch.remove(nodes)
    for value_ in (*initializers, *(output for moved in nodes for output in moved.outputs)):
        value_.name = _fresh(value_.name or "v", names)
    for initializer in initializers:
        graph.register_initializer(initializer)
    node_names = {other.name for other in graph if other.name}
    for moved in nodes:
        if moved.name:
            moved.name = _fresh(moved.name, node_names)
    graph.insert_before(node, nodes)
    for output, result in zip(node.outputs, results, strict=True):
        if output.is_graph_output() and not may_take_name_of(result, output):
            identity = ir.node("Identity", [result], name=f"{node.name}_{output.name}")
            identity.outputs[0].name = _fresh("v", names)
            graph.insert_before(node, identity)
            replace(output, identity.outputs[0])
        else:
            replace(output, result)
    graph.remove(node, safe=True)
    remove_unused_constant(condition)


def _detach(graph: ir.Graph) -> None:
    """Let go of the outer values that a dropped graph uses, or they would count its nodes as users."""
    graph.outputs.clear()
    for subgraph in (graph, *graph.subgraphs()):
        for node in subgraph:
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)


def _names(model: ir.Model, *, except_for: ir.Graph) -> set[str]:
    names = set[str]()
    for graph in (model.graph, *model.graph.subgraphs()):
        if graph is not except_for:
            values = (*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs))
            names.update(value.name for value in values if value.name)
    return names


def _fresh(name: str, taken: set[str]) -> str:
    fresh, number = name, 1
    while fresh in taken:
        fresh, number = f"{name}_{number}", number + 1
    taken.add(fresh)
    return fresh
