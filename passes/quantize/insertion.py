"""Insertion: write a plan into the graph as QuantizeLinear and DequantizeLinear.

A value that an integer layer makes is an integer from there on: everything else that reads it, the graph's output
too, gets the dequantized numbers. A value that is made in float stays float for those that read it so. Constants are
stored as integers; each bias has a scale of its own, because it depends on its layer's input.

Relu and Clip between a sum and its QuantizeLinear stay in the graph, as standard tools leave them: the graph then means
the same whatever the zero point is, and a kernel sees from zero point and scale when saturation does their work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant
from graphopt.passes.cleanup.constants import remove_unused_constant
from graphopt.passes.cleanup.rewiring import add_initializer
from graphopt.passes.quantize.arithmetic import Parameters, activation_parameters, quantize
from graphopt.passes.quantize.placement import Plan
from graphopt.passes.quantize.rules import Kind, Layer
from graphopt.passes.quantize.schemes import Scheme
from graphopt.passes.quantize.weights import IntegerWeight

Array = np.ndarray[Any, Any]


def insert(
    graph: ir.Graph,
    plan: Plan,
    parameters: Mapping[ir.Value, Parameters],
    weights: Mapping[ir.Node, IntegerWeight],
    *,
    symmetric: bool = False,
    scheme: Scheme = Scheme.INT8,
) -> None:
    """Rewrite `graph` in place.

    Args:
        parameters: of every value of the plan's groups.
        weights: of every layer of the plan that has one.
        symmetric: constants of sums are quantized around 0 too.
        scheme: what activations are, and whether biases are integers.
    """
    store = _Store(graph)
    for layer in plan.layers:
        for index in layer.operands:
            _quantize_constant(layer, index, parameters, store, symmetric, scheme)
        if layer.weight is not None:
            input_scale = parameters[layer.operand_values()[0]].scale
            _store_weight(layer, weights[layer.node], input_scale, store, integer_bias=scheme.integer_bias)
    made = {value for layer in plan.layers for value in layer.results}
    readers: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    for layer in plan.layers:
        for index in layer.operands:
            value = layer.node.inputs[index]
            if value in parameters and value is not None:
                readers.setdefault(value, []).append((layer.node, index))
    for group in plan.groups:
        for value in group.values:
            _quantize_value(graph, value, parameters[value], None if value in made else readers[value], store)


class _Store:
    """The integer constants of a graph: equal ones from one origin are stored once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._dequantized: dict[tuple[ir.Value, bytes, bytes, str], ir.Value] = {}
        self._vectors: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}

    def vector(self, name: str, array: Array) -> ir.Value:
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self._vectors:
            self._vectors[key] = add_initializer(self.graph, name, array)
        return self._vectors[key]

    def dequantized(self, origin: ir.Value, integers: Array, parameters: Parameters, before: ir.Node) -> ir.Value:
        """The output of a DequantizeLinear that stands before every reader made so far and `before`."""
        key = (origin, integers.tobytes(), parameters.scale.tobytes(), f"{parameters.axis}{integers.shape}")
        if key in self._dequantized:
            return self._dequantized[key]
        name = origin.name or "constant"
        stored = add_initializer(self.graph, f"{name}/int{8 * integers.itemsize}", integers)
        inputs = [stored, self.vector(f"{name}/scale", parameters.scale)]
        if integers.dtype != np.int32:
            inputs.append(self.vector(f"{name}/zero_point", parameters.zero_point))
        attributes = {} if parameters.axis is None else {"axis": parameters.axis}
        node = ir.node("DequantizeLinear", inputs, attributes=attributes, name=f"{stored.name}/dequantize")
        output = node.outputs[0]
        output.name = f"{stored.name}/dequantized"
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(integers.shape)
        self.graph.insert_before(before, node)
        self._dequantized[key] = output
        return output


def _quantize_constant(
    layer: Layer,
    index: int,
    parameters: Mapping[ir.Value, Parameters],
    store: _Store,
    symmetric: bool,
    scheme: Scheme,
) -> None:
    value = layer.node.inputs[index]
    array = constant(value)
    if value is None or array is None:
        return
    if layer.kind is Kind.JOIN:
        chosen = parameters[layer.operand_values()[0]]
    else:
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        chosen = activation_parameters(low, high, symmetric=symmetric, dtype=scheme.dtype)
    made = store.dequantized(value, quantize(array, chosen), chosen, layer.node)
    layer.node.replace_input_with(index, made)
    remove_unused_constant(value)


def _store_weight(
    layer: Layer, stored: IntegerWeight, input_scale: Array, store: _Store, *, integer_bias: bool
) -> None:
    weight = layer.weight
    value = layer.node.inputs[weight.index] if weight is not None else None
    if weight is None or value is None:
        return
    if layer.bias is not None:
        node, index = layer.bias.node, layer.bias.index
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        origin = old or layer.node.outputs[0]
        if integer_bias:
            steps = stored.bias_parameters(input_scale, weight.channels)
            made = store.dequantized(origin, quantize(layer.bias.values, steps), steps, layer.node)
        else:
            made = store.vector(f"{origin.name}/bias", layer.bias.values.astype(np.float32))
        node.replace_input_with(index, made)
        if old is not None:
            remove_unused_constant(old)
    made = store.dequantized(value, stored.integers, stored.parameters, layer.node)
    layer.node.replace_input_with(weight.index, made)
    remove_unused_constant(value)


def _quantize_value(
    graph: ir.Graph, value: ir.Value, chosen: Parameters, readers: list[tuple[ir.Node, int]] | None, store: _Store
) -> None:
    """Put a pair behind `value`, for `readers`, or for all (None)."""
    uses = [(use.node, use.idx) for use in value.uses()] if readers is None else readers
    name = value.name or "value"
    takes_output = readers is None and value.is_graph_output()
    constants = [store.vector(f"{name}/scale", chosen.scale), store.vector(f"{name}/zero_point", chosen.zero_point)]
    first = ir.node("QuantizeLinear", [value, *constants], name=f"{name}/quantize")
    second = ir.node("DequantizeLinear", [first.outputs[0], *constants], name=f"{name}/dequantize")
    integers, floats = first.outputs[0], second.outputs[0]
    kind = ir.DataType.from_numpy(chosen.zero_point.dtype)
    integers.name, floats.name = f"{name}/{kind.name.lower()}", f"{name}/dequantized"
    integers.type, floats.type = ir.TensorType(kind), value.type
    integers.shape = floats.shape = value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [first, second])
    else:
        graph.insert_after(producer, [first, second])
    for node, index in uses:
        node.replace_input_with(index, floats)
    if takes_output:
        value.name, floats.name = f"{name}/float", name
        for place, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[place] = floats
