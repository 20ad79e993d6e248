"""Putting new constants where a fold needs them, without leaving the old ones behind or changing another's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.passes.cleanup.rewiring import add_initializer, remove_if_unused


def set_constant(node: ir.Node, index: int, array: npt.NDArray[np.generic], base: str = "") -> None:
    """Make `array` the input `index` of `node`; an initializer that only this input used keeps its name.

    Args:
        base: what a new initializer is named after, where there was none; the node's output by default.
    """
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    old = node.inputs[index]
    if old is not None and old.is_initializer() and not _shared(old):
        old.const_value = ir.Tensor(array, name=old.name)
        old.shape = ir.Shape(array.shape)
        old.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        return
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"{node.op_type} '{node.name}' is not in a graph")
    name = base or (f"{old.name}" if old is not None else f"{node.outputs[0].name}")
    node.replace_input_with(index, add_initializer(graph, name, array))
    if old is not None:
        remove_unused_constant(old)


def constant_instead(graph: ir.Graph, value: ir.Value, array: npt.NDArray[np.generic]) -> ir.Value:
    """Let an initializer of `graph` stand for `value`, and take its name: the caller then removes the node behind it.

    `value` is the output of a node, but not of the graph.
    """
    name, value.name = value.name, None
    initializer = ir.Value(
        name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape)
    )
    initializer.const_value = ir.Tensor(array, name=name)
    graph.register_initializer(initializer)
    value.replace_all_uses_with(initializer)
    return initializer


def _shared(value: ir.Value) -> bool:
    return len(value.uses()) > 1 or value.is_graph_output() or value.is_graph_input()


def remove_unused_constant(value: ir.Value) -> None:
    """Remove an initializer, or a Constant node, that nothing uses any more; anything else stays."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    producer = value.producer()
    if value.is_initializer() and value.graph is not None and value.name is not None:
        value.graph.initializers.pop(value.name)
    elif producer is not None and producer.op_type == "Constant":
        remove_if_unused(producer)


def layer_name(node: ir.Node) -> str:
    """What the report calls `node`: its name, or its operator and what it makes."""
    return node.name or f"{node.op_type} of '{next((output.name for output in node.outputs if output.name), '')}'"
