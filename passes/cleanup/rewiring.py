"""Rewiring: how a clean-up pass lets one value take another's place, and how it reads and adds constants.

The names of a graph's outputs belong to its interface. A value that takes an output's place therefore takes its
name too, and where it cannot (it is an input, an initializer, an output already, or comes from an outer graph) the
output keeps its node and only the other uses move over.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})


def opset_of(model: ir.Model) -> int:
    """The version of the standard operators that the model imports; 1 if it uses none of them."""
    versions = [model.opset_imports[domain] for domain in STANDARD_DOMAINS if domain in model.opset_imports]
    return max(versions, default=1)


def is_standard(node: ir.Node, *operators: str) -> bool:
    """Whether `node` is of the standard domain and, where `operators` are given, one of them."""
    return node.domain in STANDARD_DOMAINS and (not operators or node.op_type in operators)


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


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """The array of an initializer or of a Constant node; None for anything that is known only at run time.

    An initializer that is also an input of its graph is a default that the caller may override: not a constant.
    """
    if value is None or value.is_graph_input():
        return None
    producer = value.producer()
    if not value.is_initializer() and (producer is None or not is_standard(producer, "Constant")):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of `value` if every dimension is a number."""
    if value is None or value.shape is None:
        return None
    dims = value.shape.dims
    return tuple(dim for dim in dims if isinstance(dim, int)) if all(isinstance(dim, int) for dim in dims) else None


def same_shape(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether both values are known to have one shape; equal names stand for equal dimensions."""
    if one is None or other is None or one.shape is None or other.shape is None:
        return False
    if len(one.shape) != len(other.shape):
        return False
    return all(
        a == b and (isinstance(a, int) or a.value is not None)
        for a, b in zip(one.shape.dims, other.shape.dims, strict=True)
    )


def has_parameter(node: ir.Node, name: str, index: int) -> bool:
    """Whether the parameter that was attribute `name` and became input `index` is given in either form."""
    return name in node.attributes or (index < len(node.inputs) and node.inputs[index] is not None)


def integers(node: ir.Node, name: str, index: int) -> tuple[int, ...] | None:
    """The integers of a parameter, attribute `name` or input `index` by version; None if absent or not constant."""
    if name in node.attributes:
        attribute = node.attributes[name]
        if attribute.is_ref():
            return None
        return (attribute.as_int(),) if attribute.type == ir.AttributeType.INT else tuple(attribute.as_ints())
    array = constant(node.inputs[index]) if index < len(node.inputs) else None
    return None if array is None else tuple(int(number) for number in array.reshape(-1))


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


def axes_of(node: ir.Node, rank: int, index: int = 1) -> tuple[int, ...] | None:
    """The sorted, non-negative axes of a Squeeze, Unsqueeze or Reduce in either form; None if not constant."""
    axes = integers(node, "axes", index)
    return None if axes is None else normalized(axes, rank)


def normalized(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """`axes`, of which negative ones count from the end of `rank`, as sorted non-negative numbers."""
    return tuple(sorted(axis % rank for axis in axes))
