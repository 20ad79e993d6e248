"""A stable text form of the IR, for golden files, diffs and error messages.

    graph "net" {ir=8, ai.onnx=17}
      input %x: f32[N,3,32,32]
      weight %w: f32[16,3,3,3] = sha256:9f86d081884c7d65
      %y = Conv(%x, %w) {pads=[1,1,1,1]}  # f32[N,16,32,32] "layer1.conv"
      output %y: f32[N,16,32,32]

The same model gives the same text: names are the model's own, attributes are sorted, nodes stand in the graph's order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator

import onnx_ir as ir

from graphopt.ir.interface import format_shape, format_type, port, short_dtype
from graphopt.ir.weights import pieces

_SHOWN_ELEMENTS = 8
_SHOWN_ENTRIES = 16
_SHOWN_CHARACTERS = 60
_PLAIN_NAME = re.compile(r"[\w.:/\-]+")
_INDENT = "  "


def to_text(model: ir.Model, *, around: ir.Node | None = None, context: int = 2) -> str:
    """The text of `model`, or of the nodes next to `around`.

    Args:
        around: a node of the model, in a subgraph too; only it and its neighbours in its graph are shown,
            and it is marked by an arrow. Subgraphs and weights are left out.
        context: how many nodes before and after `around` to show.
    """
    if around is not None:
        return "\n".join(_neighbours(around, context))
    opsets = ", ".join(f"{domain or 'ai.onnx'}={version}" for domain, version in sorted(model.opset_imports.items()))
    head = f"graph {_quote(model.graph.name or '')} {{ir={model.ir_version}, {opsets}}}"
    return "\n".join([head, *_graph_lines(model.graph, _INDENT)]) + "\n"


def _neighbours(around: ir.Node, context: int) -> Iterator[str]:
    graph = around.graph
    if graph is None:
        yield "> " + node_text(around)
        return
    nodes = list(graph)
    at = nodes.index(around)
    for node in nodes[max(0, at - context) : at + context + 1]:
        yield ("> " if node is around else "  ") + node_text(node)


def _graph_lines(graph: ir.Graph, indent: str) -> Iterator[str]:
    for value in graph.inputs:
        yield f"{indent}input {value_text(value)}{_type_and_shape(value)}"
    for value in graph.initializers.values():
        data = tensor_text(value.const_value) if value.const_value is not None else "missing"
        yield f"{indent}weight {value_text(value)}{_type_and_shape(value)} = {data}"
    for node in graph:
        yield indent + node_text(node)
        for name, subgraph in _subgraphs(node):
            yield f"{indent}{_INDENT}{name}:"
            yield from _graph_lines(subgraph, indent + 2 * _INDENT)
    for value in graph.outputs:
        yield f"{indent}output {value_text(value)}{_type_and_shape(value)}"


def node_text(node: ir.Node) -> str:
    """One line: outputs, operator, inputs, attributes; then types and shapes of the outputs, and the node's name."""
    outputs = ", ".join(value_text(value) for value in node.outputs)
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    inputs = ", ".join(value_text(value) for value in node.inputs)
    attributes = ", ".join(
        f"{name}={_attribute_text(attribute)}"
        for name, attribute in sorted(node.attributes.items())
        if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    )
    types = ", ".join(f"{format_type(value.type)}{format_shape(port(value).shape)}" for value in node.outputs)
    name = f" {_quote(node.name)}" if node.name else ""
    return f"{outputs} = {operator}({inputs}){f' {{{attributes}}}' if attributes else ''}  # {types}{name}"


def value_text(value: ir.Value | None) -> str:
    """ "%name"; "_" for an input or output that is left out."""
    if value is None or value.name == "":
        return "_"
    if value.name is None:
        return "%?"
    return "%" + (value.name if _PLAIN_NAME.fullmatch(value.name) else _quote(value.name))


def _type_and_shape(value: ir.Value) -> str:
    return f": {format_type(value.type)}{format_shape(port(value).shape)}"


def _subgraphs(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    for name, attribute in sorted(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from ((f"{name}[{index}]", graph) for index, graph in enumerate(attribute.as_graphs()))


def _attribute_text(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    value = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{short_dtype(tensor.dtype)}{format_shape(tuple(tensor.shape.numpy()))} {tensor_text(tensor)}"
    if attribute.type == ir.AttributeType.TENSORS:
        return "[" + ", ".join(tensor_text(tensor) for tensor in attribute.as_tensors()) + "]"
    if isinstance(value, list | tuple):
        shown = ",".join(map(_scalar_text, value[:_SHOWN_ENTRIES]))
        return f"[{shown}{f',... {len(value)} in all' if len(value) > _SHOWN_ENTRIES else ''}]"
    return _scalar_text(value)


def _scalar_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.9g}"  # enough digits to tell any two single-precision numbers apart
    if isinstance(value, ir.TypeAndShape):
        return format_type(value.type)
    if isinstance(value, bytes):
        return _quote(value.decode("utf-8", "backslashreplace"))
    return _quote(value) if isinstance(value, str) else str(value)


def tensor_text(tensor: ir.TensorProtocol) -> str:
    """The values of a small tensor; of a larger one the first 16 digits of the SHA-256 of its bytes."""
    if tensor.size <= _SHOWN_ELEMENTS:
        if isinstance(tensor, ir.StringTensor):
            return "[" + ", ".join(_scalar_text(text) for text in tensor.string_data()) + "]"
        entries = tensor.numpy().reshape(-1).tolist()
        return "[" + ", ".join(_scalar_text(entry) for entry in entries) + "]"
    digest = hashlib.sha256()
    for piece in pieces(tensor):
        digest.update(piece)
    return f"sha256:{digest.hexdigest()[:16]}"


def _quote(text: str) -> str:
    short = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
    return json.dumps(short, ensure_ascii=False)
