"""Move transposes through layout-free operators where that leaves fewer of them.

Exporters from channels-last frameworks wrap operators in transposes; most cancel once they meet, but element-wise
operators stand between. For one permutation p, every layout-free node (`layout_free`) can compute either as it is
(kept) or in the order that tensors have before Transpose_p (turned). Where a kept node and a turned one exchange a
tensor, that tensor needs one transpose, however many read it; a turned reader of Transpose_p(u) reads u, and a kept
Transpose_p⁻¹ of a turned tensor is nothing at all. The assignment with the fewest transposes is a minimum cut:
the source's side is turned, the sink's side is kept, and the capacities are what an exchange costs.

The estimate is never below what is left after merging, so each step leaves fewer transposes, which ends the search.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import networkx as nx
import onnx_ir as ir

from graphopt.ir.reading import constant, opset_of
from graphopt.passes.cleanup import layout_free
from graphopt.passes.cleanup.merge_transposes import Permutation, inverse, merge_transposes, permutation_of
from graphopt.passes.cleanup.rewiring import fresh_name, may_take_name_of, remove_if_unused, replace
from graphopt.pipeline.base import Pass, PassContext, PassResult

TURNED, KEPT = "turned", "kept"


@dataclass(frozen=True)
class MoveTransposes(Pass):
    """Move Transpose through element-wise operators, Concat, Split, Reduce, Pad and Slice, where it saves some."""

    name: ClassVar[str] = "move-transposes"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        version = opset_of(model)
        merged = removed = turned = 0
        for graph in model.graphs():
            before = _count(graph)
            merged += merge_transposes(graph) + _share(graph)
            while nodes := _turn_best(graph, version):
                turned += nodes
            removed += before - _count(graph)
        return PassResult(bool(merged or turned), {"transposes-removed": removed, "nodes-turned": turned})


def _count(graph: ir.Graph) -> int:
    return sum(permutation_of(node) is not None for node in graph)


def _turn_best(graph: ir.Graph, version: int) -> int:
    """Turn the nodes that save transposes of the first permutation that has such; how many were turned."""
    permutations = dict.fromkeys(filter(None, (permutation_of(node) for node in graph)))
    for permutation in permutations:
        nodes = _nodes_to_turn(graph, permutation, version)
        if nodes:
            _turn(graph, nodes, permutation)
            return len(nodes)
    return 0


def _nodes_to_turn(graph: ir.Graph, permutation: Permutation, version: int) -> dict[ir.Node, tuple[int, ...]]:
    """The nodes to turn, with their inputs in the order of the axes; empty if no assignment saves a transpose."""
    free = {}
    for node in graph:
        inputs = layout_free.ordered_inputs(node, len(permutation), version)
        if inputs is not None and permutation_of(node) is None:
            free[node] = inputs
    network = _network(graph, free, permutation)
    unit = len(free) + 1  # a transpose costs more than turning every node
    best, (side, _) = nx.minimum_cut(network, TURNED, KEPT)
    for node in free:
        del network.edges[node, KEPT]["capacity"]  # an edge without capacity holds its ends together
    present, _ = nx.minimum_cut(network, TURNED, KEPT)
    if best // unit >= present // unit:
        return {}
    return {node: inputs for node, inputs in free.items() if node in side}


def _network(
    graph: ir.Graph, free: dict[ir.Node, tuple[int, ...]], permutation: Permutation
) -> nx.DiGraph[ir.Node | str | tuple[str, ir.Value]]:
    """The costs of all assignments as capacities from what is turned to what is kept."""
    unit = len(free) + 1
    network: nx.DiGraph[ir.Node | str | tuple[str, ir.Value]] = nx.DiGraph()
    network.add_nodes_from((TURNED, KEPT))
    for node in free:
        network.add_edge(node, KEPT, capacity=1)  # of equally good assignments, the one that turns the fewest
    for value in _tensors(graph):
        readers = _readers(graph, value, free, permutation)
        producer = value.producer()
        if producer is not None and _gives_turned(producer, free, permutation):
            _add_need(network, value, readers, KEPT, TURNED, unit)
            continue
        made = producer if producer in free else KEPT
        if made is not KEPT:
            _add_need(network, value, readers, KEPT, made, unit)
        elif producer is not None and permutation_of(producer) not in (None, inverse(permutation)):
            _add_need(network, value, readers, KEPT, TURNED, unit)  # a transpose of its own for each order
        _add_need(network, value, readers, TURNED, made, unit)
    return network


def _tensors(graph: ir.Graph) -> Iterable[ir.Value]:
    """The values of the graph and those that it captures, constants aside."""
    values = dict.fromkeys(graph.inputs)
    for node in graph:
        values.update(dict.fromkeys(value for value in node.inputs if value is not None and constant(value) is None))
        values.update(dict.fromkeys(node.outputs))
    return values


def _gives_turned(node: ir.Node, free: dict[ir.Node, tuple[int, ...]], permutation: Permutation) -> bool:
    """Whether `node` is Transpose_p, so that its input is its output turned.

    A p that is its own inverse could as well be the end of a turned region: it is, if a layout-free node feeds it.
    """
    if permutation_of(node) != permutation:
        return False
    fed = node.inputs[0].producer() if node.inputs[0] is not None else None
    return permutation != inverse(permutation) or fed not in free


def _readers(
    graph: ir.Graph, value: ir.Value, free: dict[ir.Node, tuple[int, ...]], permutation: Permutation
) -> list[ir.Node | str]:
    """Who reads `value`: layout-free nodes, TURNED for a transpose that wants it turned, KEPT for all others."""
    readers: dict[ir.Node | str, None] = {KEPT: None} if value.is_graph_output() else {}
    for user, index in value.uses():
        order = permutation_of(user)
        if user in free and index in free[user]:
            readers[user] = None
        elif order is None or user.graph is not graph or _gives_turned(user, free, permutation):
            readers[KEPT] = None
        elif order == inverse(permutation):
            readers[TURNED if _can_vanish(user, value, permutation) else KEPT] = None
        # any other transpose takes up another one in front of it
    return list(readers)


def _can_vanish(last: ir.Node, value: ir.Value, permutation: Permutation) -> bool:
    """Whether `last`, which turns `value` back, needs no node once `value` is there turned.

    Its result may be an output of the graph: then the turned tensor must take that name, which only one value can.
    """
    result = last.outputs[0]
    if not result.is_graph_output():
        return True
    producer = value.producer()
    if producer is None:
        return False
    if permutation_of(producer) == permutation:
        source = producer.inputs[0]
        if source is None or not may_take_name_of(source, result):
            return False
    rivals = (user for user, _ in value.uses() if permutation_of(user) == inverse(permutation))
    return next(user for user in rivals if user.outputs[0].is_graph_output()) is last


def _add_need(
    network: nx.DiGraph[ir.Node | str | tuple[str, ir.Value]],
    value: ir.Value,
    readers: list[ir.Node | str],
    wanted: str,
    made: ir.Node | str,
    unit: int,
) -> None:
    """Charge one transpose if some reader is on the side `wanted` while `made` is on the other."""
    if not readers:
        return
    joint = (wanted, value)
    if wanted == KEPT:
        network.add_edge(made, joint, capacity=unit)
        for reader in readers:
            network.add_edge(joint, reader)
    else:
        network.add_edge(joint, made, capacity=unit)
        for reader in readers:
            network.add_edge(reader, joint)


def _turn(graph: ir.Graph, nodes: dict[ir.Node, tuple[int, ...]], permutation: Permutation) -> None:
    """Wrap each node in transposes there and back, and let those in between cancel."""
    back = inverse(permutation)
    for node, inputs in nodes.items():
        for index in inputs:
            value = node.inputs[index]
            assert value is not None
            if constant(value) is None:
                node.replace_input_with(index, _transpose_before(graph, node, value, back))
            else:
                layout_free.permute_constant(graph, node, index, permutation)
        layout_free.permute(graph, node, permutation)
        for output in node.outputs:
            if output.name:
                _transpose_after(graph, node, output, permutation)
    merge_transposes(graph)
    _share(graph)
    for node in reversed(graph):
        if permutation_of(node) is not None:
            remove_if_unused(node)


def _transpose_before(graph: ir.Graph, node: ir.Node, value: ir.Value, order: Permutation) -> ir.Value:
    assert value.shape is not None
    name = fresh_name(graph, f"{value.name}")
    transpose = ir.node("Transpose", [value], {"perm": order}, num_outputs=1, name=name)
    result = transpose.outputs[0]
    result.name, result.type = name, value.type
    result.shape = ir.Shape([value.shape[axis] for axis in order])
    graph.insert_before(node, transpose)
    return result


def _transpose_after(graph: ir.Graph, node: ir.Node, output: ir.Value, order: Permutation) -> None:
    """Let Transpose of `output` stand where `output` did, under its name."""
    name, shape = f"{output.name}", output.shape
    assert shape is not None
    transpose = ir.node("Transpose", [output], {"perm": order}, num_outputs=1, name=fresh_name(graph, name))
    result = transpose.outputs[0]
    result.type, result.shape = output.type, shape
    graph.insert_after(node, transpose)
    inner = fresh_name(graph, name)
    replace(output, result)
    transpose.replace_input_with(0, output)
    output.name, result.name = inner, name
    output.shape = ir.Shape([shape[axis] for axis in inverse(order)])


def _share(graph: ir.Graph) -> int:
    """Merge transposes of one tensor by one permutation; how many gave way."""
    first: dict[tuple[ir.Value | None, Permutation], ir.Value] = {}
    merged = 0
    for node in graph:
        order = permutation_of(node)
        if order is None:
            continue
        original = first.setdefault((node.inputs[0], order), node.outputs[0])
        if original is not node.outputs[0]:
            moved = replace(node.outputs[0], original)
            merged += remove_if_unused(node) or moved
    return merged
