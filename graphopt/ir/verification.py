"""Verify that the IR is a graph that ONNX allows, before a backend trips over it."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx.checker
import onnx_ir as ir

from graphopt.errors import ShapeError, VerifyError
from graphopt.ir.admission import without_data
from graphopt.ir.inference import infer
from graphopt.ir.interface import Interface, format_shape, short_dtype
from graphopt.ir.light import light_proto
from graphopt.ir.operands import operand_fault
from graphopt.ir.text import to_text, value_text


def verify(model: ir.Model, *, interface: Interface | None = None) -> None:
    """Raise VerifyError if `model` breaks an invariant; the error quotes the nodes around the fault.

    Every value has one producer, in scope and before its uses, and a name that no other value in scope bears;
    initializers have the type and shape of their data; every node has the inputs, outputs and attributes that its
    operator allows; recorded types and shapes agree with those that ONNX infers, and channels with the weights.

    Args:
        interface: what inputs and outputs must still be. The shape of an output may have become known better.
    """
    verify_structure(model)
    if interface is not None and (fault := interface.difference(Interface.of(model))):
        raise VerifyError(f"the public interface changed: {fault}", advice="a pass must keep inputs and outputs")
    for node in model.graph.all_nodes():
        if fault := operand_fault(node):
            raise _fault(model, node, f"{_label(node)} {fault}")
    proto = light_proto(model)
    try:
        infer(model, proto)
    except ShapeError as error:
        raise VerifyError(error.what, where=error.where, advice=error.advice) from error
    try:
        onnx.checker.check_model(without_data(proto))
    except onnx.checker.ValidationError as error:
        raise VerifyError(f"onnx's checker refuses the graph: {str(error).splitlines()[0]}") from error


def verify_structure(model: ir.Model) -> None:
    """The part of `verify` that looks at the graph alone: producers, order, scopes, names, initializers."""
    if model.functions:
        names = ", ".join(sorted(name for _, name, _ in model.functions))
        raise VerifyError(f"functions must be inlined, found {names}", advice="load the model by graphopt.ir.load")
    _verify_graph(model, model.graph, frozenset(), frozenset())
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.type is None:
            raise VerifyError(f"the type of {value_text(value)}, an input or output of the graph, is unknown")


def _verify_graph(model: ir.Model, graph: ir.Graph, outer: frozenset[ir.Value], outer_names: frozenset[str]) -> None:
    """Check `graph`, which sees the values `outer` of the graphs around it."""
    scope: set[ir.Value] = set(outer)
    names: set[str] = set(outer_names)

    def define(value: ir.Value, node: ir.Node | None) -> None:
        if not value.name:
            if node is None or value.uses() or value in graph.outputs:
                raise _fault(model, node, f"a value of graph {graph.name!r} has no name")
            return
        if value.name in names:
            raise _fault(model, node, f"{value_text(value)} has more than one producer")
        names.add(value.name)
        scope.add(value)

    for value in graph.inputs:
        if value.producer() is not None:
            raise _fault(model, value.producer(), f"{value_text(value)} is a graph input and the output of a node")
        define(value, None)
    for name, value in graph.initializers.items():
        if value not in scope:
            define(value, value.producer())
        _verify_initializer(model, name, value)
    for node in graph:
        for used in node.inputs:
            if used is not None and used not in scope:
                raise _fault(model, node, f"{_label(node)} uses {value_text(used)}, which {_why_absent(used, graph)}")
        for subgraph in _subgraphs(node):
            _verify_graph(model, subgraph, frozenset(scope), frozenset(names))
        for value in node.outputs:
            define(value, node)
    for value in graph.outputs:
        if value not in scope:
            raise _fault(model, value.producer(), f"the output {value_text(value)} is not made in graph {graph.name!r}")


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _why_absent(value: ir.Value, graph: ir.Graph) -> str:
    producer = value.producer()
    if producer is None:
        return "is neither an input nor an initializer of this graph or one around it"
    if producer.graph is graph:
        return f"is made only after it, by {_label(producer)}"
    if producer.graph is None:
        return f"is made by {_label(producer)}, which was removed"
    return f"is made in another graph, {producer.graph.name!r}"


def _verify_initializer(model: ir.Model, name: str, value: ir.Value) -> None:
    user = next((usage.node for usage in value.uses()), None)
    if value.name != name:
        raise _fault(model, user, f"the initializer {value_text(value)} is listed under the name {name!r}")
    if value.producer() is not None:
        raise _fault(model, value.producer(), f"{value_text(value)} is an initializer and the output of a node")
    tensor = value.const_value
    if tensor is None:
        raise _fault(model, user, f"the initializer {value_text(value)} has no data")
    if value.dtype is not None and value.dtype != tensor.dtype:
        found, expected = short_dtype(tensor.dtype), short_dtype(value.dtype)
        raise _fault(model, user, f"the initializer {value_text(value)} is declared as {expected}, its data is {found}")
    if value.shape is not None and not _matches(value.shape, tensor.shape):
        declared = format_shape([dim if isinstance(dim, int) else None for dim in value.shape])
        found = format_shape(tuple(tensor.shape.numpy()))
        raise _fault(model, user, f"the initializer {value_text(value)} has shape {declared}, its data has {found}")


def _matches(declared: ir.Shape, actual: ir.ShapeProtocol) -> bool:
    sizes = actual.numpy()
    return len(declared) == len(sizes) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(declared, sizes, strict=True)
    )


def _label(node: ir.Node) -> str:
    if node.name or not node.outputs:
        return f"{node.op_type} {node.name!r}"
    return f"the {node.op_type} that makes {value_text(node.outputs[0])}"


def _fault(model: ir.Model, node: ir.Node | None, what: str) -> VerifyError:
    return VerifyError(what, where=to_text(model, around=node) if node is not None else "")
