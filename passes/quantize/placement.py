"""Placement: which nodes compute on integers, which values are integers for that, and which of these share a scale.

First every node that could is taken for an integer node, then those are given up, until none is left, whose result
no integer node reads (only a sum of products can end in float at no loss: its int32 is scaled) and those that would
compute on integers between floats. So no QuantizeLinear stands where nothing integer uses it.

Signal processing stays in float: what a square, root, logarithm or quotient looks at must keep its relative precision,
over several powers of ten. That holds back to the layer before it, and that layer too if it has no learned layer before
it (a Fourier transform as a Conv, a filter bank as a MatMul). And it holds forward, from squares with no learned layer
before them to the products that read them, their roots or sums: magnitudes are as loud as the signal is, until a
logarithm, or a layer with its activation, has compressed them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import networkx as nx
import onnx_ir as ir

from graphopt.ir.reading import constant, is_standard
from graphopt.passes.cleanup.constants import layer_name
from graphopt.passes.quantize.rules import (
    Bias,
    Kind,
    Layer,
    Weight,
    channel_vector,
    compresses,
    is_activation,
    is_norm,
    is_square,
    layer_of,
    needing_precision,
)
from graphopt.pipeline.base import Declined


@dataclass(frozen=True)
class Group:
    """Values that share a scale, in the order of the graph.

    sources: those whose own numbers decide the range; the others hold numbers of these.
    fixed: the range of what a function of fixed range makes; of no value where `sources` tell.
    """

    values: tuple[ir.Value, ...]
    sources: tuple[ir.Value, ...]
    fixed: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Plan:
    """layers: the integer nodes in order; groups: each integer value is in one; declined: other nodes, with reasons."""

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    declined: tuple[Declined, ...]


def place(graph: ir.Graph, *, exclude: Sequence[str] = (), refused: Mapping[ir.Node, str] | None = None) -> Plan:
    """Plan the quantization of the main graph; nothing is changed.

    Args:
        exclude: patterns of names of nodes, with * and ?, that stay in float.
        refused: nodes that stay in float for other reasons.
    """
    layers: dict[ir.Node, Layer] = {}
    reasons: dict[ir.Node, str] = {}
    for node in graph:
        if not _computes_floats(node):
            continue
        found = _excluded(node, exclude) or (refused or {}).get(node) or layer_of(node)
        if isinstance(found, str):
            reasons[node] = found
        else:
            layers[node] = found
    for node, reason in _front_end(graph, layers).items():
        reasons[node] = reason
        del layers[node]
    _attach_tails(layers)
    _give_up(layers, reasons)
    for layer in layers.values():
        for node in layer.tail:
            reasons.pop(node, None)
    declined = [Declined(layer_name(node), reasons[node]) for node in graph if node in reasons]
    inner = [node for node in graph.all_nodes() if node.graph is not graph and is_standard(node, *_PRODUCTS)]
    declined += [Declined(layer_name(node), "it is in a subgraph") for node in inner]
    return Plan(tuple(layers.values()), tuple(_groups(layers)), tuple(declined))


_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def _computes_floats(node: ir.Node) -> bool:
    """Whether `node` makes numbers that could be quantized, from something that is not all constant."""
    if not any(output.dtype in _FLOATS for output in node.outputs):
        return False
    return any(value is not None and constant(value) is None for value in node.inputs)


def _excluded(node: ir.Node, patterns: Sequence[str]) -> str:
    pattern = next((pattern for pattern in patterns if fnmatch.fnmatchcase(layer_name(node), pattern)), None)
    return "" if pattern is None else f"it is excluded by '{pattern}'"


def _front_end(graph: ir.Graph, layers: Mapping[ir.Node, Layer]) -> dict[ir.Node, str]:
    """The layers that are to keep relative precision, each with the operator that needs it."""
    reader: dict[ir.Node, ir.Node] = {}  # a node, and the wide operator that its numbers come to
    for node in reversed(list(graph)):
        values: Sequence[ir.Value | None] = needing_precision(node)
        needs = node
        if (
            not values
            and node in reader
            and not (is_standard(node, *_PRODUCTS) or is_activation(node) or is_norm(node))
        ):
            values, needs = node.inputs, reader[node]
        for value in values:
            producer = value.producer() if value is not None else None
            if producer is not None and producer.graph is graph:
                reader[producer] = needs
    reasons: dict[ir.Node, str] = {}
    learned: set[ir.Node] = set()  # nodes with a learned layer before them, or that are one
    magnitude: dict[ir.Node, ir.Node] = {}  # nodes whose numbers are sums of magnitudes, and the square in these
    for node in graph:
        producers = [value.producer() for value in node.inputs if value is not None]
        behind = any(producer in learned for producer in producers)
        product = is_standard(node, *_PRODUCTS)
        squares = [magnitude[producer] for producer in producers if producer in magnitude]
        square = node if is_square(node) and not behind else next(iter(squares), None)
        if square is not None and not compresses(node):
            magnitude[node] = square
            if product and node in layers:
                reasons[node] = f"it reads magnitudes, of '{layer_name(square)}' ({square.op_type}), of every size"
        if node in reader and node in layers and not is_activation(node) and not (product and behind):
            wide = reader[node]
            reasons[node] = f"'{layer_name(wide)}' ({wide.op_type}) needs its relative precision"
        elif product:
            learned.add(node)
        if behind:
            learned.add(node)
    return reasons


def _attach_tails(layers: dict[ir.Node, Layer]) -> None:
    """Join each layer with the bias, Relu and Clip right behind it, which are no layers of their own then."""
    for node in list(layers):
        layer = layers.get(node)
        if layer is None or layer.kind not in (Kind.PRODUCT, Kind.SUM, Kind.POOL):
            continue
        if layer.kind is Kind.PRODUCT and layer.bias is None and layer.weight is not None:
            layer = _with_added_bias(layer, layer.weight, layers)
        follower = _only_reader((layer.tail[-1] if layer.tail else layer.node).outputs[0])
        if follower in layers and follower is not None and layers[follower].rule.kind is Kind.BOUND:
            layer = replace(layer, tail=(*layer.tail, follower))
            del layers[follower]
        layers[node] = layer


def _with_added_bias(layer: Layer, weight: Weight, layers: dict[ir.Node, Layer]) -> Layer:
    add = _only_reader(layer.node.outputs[0])
    if add is None or add not in layers or add.op_type != "Add" or layer.node.op_type != "MatMul" or not weight.index:
        return layer
    index = 0 if add.inputs[1] is layer.node.outputs[0] else 1
    array = constant(add.inputs[index])
    made = layer.node.outputs[0].shape
    if array is None or made is None or array.ndim > len(made):
        return layer
    vector = channel_vector(array, weight.channels)
    if vector is None:
        return layer
    del layers[add]
    return replace(layer, bias=Bias(add, index, vector), tail=(add,))


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = next(iter(uses)).node
    return node if node.graph is value.graph or node.graph is _graph_of(value) else None


def _graph_of(value: ir.Value) -> ir.Graph | ir.Function | None:
    producer = value.producer()
    return producer.graph if producer is not None else None


def _give_up(layers: dict[ir.Node, Layer], reasons: dict[ir.Node, str]) -> None:
    """Take away the layers that would not compute from integers to integers, until all that stay do."""
    while True:
        read = {value for layer in layers.values() for value in layer.operand_values()}
        made = {value for layer in layers.values() for value in layer.results}
        lost = {node: reason for node, layer in layers.items() if (reason := _floating(layer, read, made))}
        if not lost:
            return
        for node, reason in lost.items():
            reasons[node] = reason
            for follower in layers[node].tail:
                reasons[follower] = "the layer before it is in float"
            del layers[node]


def _floating(layer: Layer, read: set[ir.Value], made: set[ir.Value]) -> str:
    if layer.kind is Kind.PRODUCT:
        return ""
    if not any(value in read for value in layer.results):
        return "no integer layer reads its result"
    operands = layer.operand_values()
    interface = layer.kind is Kind.MOVE and any(value.is_graph_input() for value in operands)
    return "" if interface or any(value in made for value in operands) else "no integer layer makes its operands"


def _groups(layers: Mapping[ir.Node, Layer]) -> Iterator[Group]:
    """The integer values, joined where a layer keeps the scale."""
    sharing: nx.Graph[ir.Value] = nx.Graph()
    derived: set[ir.Value] = set()  # their numbers are others', or lie in a fixed range
    fixed: dict[ir.Value, list[tuple[float, float]]] = {}
    read = {value for layer in layers.values() for value in layer.operand_values()}
    for layer in layers.values():
        results = layer.results if any(value in read for value in layer.results) else ()
        values = (*layer.operand_values(), *results)
        sharing.add_nodes_from(values)
        if layer.kind in (Kind.MOVE, Kind.JOIN):
            sharing.add_edges_from((values[0], value) for value in values[1:])
            derived.update(results)
            arrays = [constant(layer.node.inputs[index]) for index in layer.operands]
            ranges = [(float(array.min()), float(array.max())) for array in arrays if array is not None and array.size]
            fixed.setdefault(values[0], []).extend(ranges)
        elif layer.rule.fixed is not None:
            derived.update(results)
            for value in results:
                fixed.setdefault(value, []).append(layer.rule.fixed)
    order = {value: place for place, value in enumerate(sharing)}
    for component in nx.connected_components(sharing):
        values = tuple(sorted(component, key=order.__getitem__))
        sources = tuple(value for value in values if value not in derived)
        yield Group(values, sources, tuple(each for value in values for each in fixed.get(value, ())))
