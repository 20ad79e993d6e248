"""Rewiring: how a clean-up pass lets one value take another's place, and how it adds constants.

The names of a graph's outputs belong to its interface. A value that takes an output's place therefore takes its
name too, and where it cannot (it is an input, an initializer, an output already, or comes from an outer graph) the
output keeps its node and only the other uses move over.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


def may_take_name_of(new: ir.Value, output: ir.Value) -> bool:
    """Whether `new` can become the output that `output` is: made by a node of the same graph, and no output yet."""
    producer, replaced = new.producer(), output.producer()
    return (
        producer is not None and replaced is not None and producer.graph is replaced.graph and not new.is_graph_output()
    )


def replace(old: ir.Value, new: ir.Value) -> bool:
    """Let `new` stand wherever `old` is used, also as the graph's output; whether that changed anything.

    `old` keeps its place as an output of the graph where `new` cannot take its name. Its producer is not removed.
    """
    if not old.is_graph_output():
        if not old.uses():
            return False
        if new.shape is None:
            new.shape = old.shape
        old.replace_all_uses_with(new)
        return True
    if may_take_name_of(new, old):
        # the declared type and shape of the output are the interface
        name, old.name = old.name, None
        new.name, new.type, new.shape = name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        return True
    uses = tuple(old.uses())
    for node, index in uses:
        node.replace_input_with(index, new)
    return bool(uses)


def is_used(node: ir.Node) -> bool:
    """Whether anything reads an output of `node`, or one is the graph's."""
    return any(output.uses() or output.is_graph_output() for output in node.outputs)


def remove_if_unused(node: ir.Node) -> bool:
    """Remove `node` from its graph if nothing uses its outputs; whether it was removed."""
    if node.graph is None or is_used(node):
        return False
    node.graph.remove(node, safe=True)
    return True


def fresh_name(graph: ir.Graph, base: str) -> str:
    """A name made from `base` that no other value has.

    A graph does not know the graphs around it, whose names it must not use either. So a `base` from elsewhere is
    first joined with the name of this graph's first output, which only this graph can make names from.
    """
    own: set[str | None] = set()
    for scope in (graph, *graph.subgraphs()):
        own.update(value.name for value in scope.inputs)
        own.update(scope.initializers)
        own.update(output.name for node in scope for output in node.outputs)
    if base not in own and graph.outputs:
        base = f"{base}:{graph.outputs[0].name}"
    number = 1
    while (name := f"{base}:{number}") in own:
        number += 1
    return name


def add_initializer(graph: ir.Graph, base: str, array: npt.NDArray[np.generic]) -> ir.Value:
    """A new initializer of `graph` that holds `array`, with a name made from `base` that no other value has."""
    name = fresh_name(graph, base)
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape))
    value.const_value = ir.Tensor(array, name=name)
    graph.register_initializer(value)
    return value
