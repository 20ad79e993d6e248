"""A fingerprint of what a model computes: structure and weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import onnx_ir as ir

from graphopt.ir.interface import format_type, shape_of, short_dtype
from graphopt.ir.weights import pieces


def fingerprint(model: ir.Model) -> str:
    """SHA-256, in hex, of the graph and its weights.

    Equal for models that differ only in the names of inner values and nodes, in metadata, doc strings and recorded
    inner shapes, or in where the weights are stored. The names of inputs and outputs count, and so does the order of
    nodes. Weights are read piece by piece.
    """
    digest = hashlib.sha256()
    opsets = dict(sorted(model.opset_imports.items()))
    _add(digest, ["graphopt-1", opsets])
    _add_graph(digest, model.graph, {}, named=True)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, what: object) -> None:
    digest.update(json.dumps(what, ensure_ascii=True, separators=(",", ":")).encode())
    digest.update(b"\n")


def _add_graph(digest: hashlib._Hash, graph: ir.Graph, outer: dict[ir.Value, int], *, named: bool) -> None:
    """Values are numbered by first appearance; initializers appear where they are first used."""
    numbers = dict(outer)

    def number(value: ir.Value | None) -> int:
        if value is None or value.name == "":
            return -1
        if value not in numbers:
            numbers[value] = len(numbers)
            if value.const_value is not None and value.is_initializer():
                _add(digest, ["weight", numbers[value]])
                _add_tensor(digest, value.const_value)
        return numbers[value]

    for value in graph.inputs:
        _add(digest, ["input", *(_public(value) if named else ()), number(value)])
    for node in graph:
        _add(digest, ["node", node.domain, node.op_type, _trimmed([number(value) for value in node.inputs])])
        for name, attribute in sorted(node.attributes.items()):
            _add_attribute(digest, name, attribute, numbers)
        _add(digest, ["makes", _trimmed([number(value) for value in node.outputs])])
    for value in graph.outputs:
        _add(digest, ["output", *(_public(value) if named else ()), number(value)])
    for unused in sorted(_tensor_digest(v.const_value) for v in graph.initializers.values() if not v.uses()):
        _add(digest, ["unused", unused])


def _trimmed(numbers: list[int]) -> list[int]:
    """Without what is left out at the end: to say so or not means the same."""
    while numbers and numbers[-1] == -1:
        numbers.pop()
    return numbers


def _public(value: ir.Value) -> tuple[object, ...]:
    return value.name, format_type(value.type), shape_of(value)


def _add_attribute(digest: hashlib._Hash, name: str, attribute: ir.Attr, numbers: dict[ir.Value, int]) -> None:
    _add(digest, ["attribute", name, attribute.type.name, attribute.ref_attr_name or ""])
    if attribute.is_ref():
        return
    for tensor in _attribute_tensors(attribute):
        _add_tensor(digest, tensor)
    for graph in _attribute_graphs(attribute):
        _add_graph(digest, graph, numbers, named=False)
    if attribute.type not in _WITH_OBJECTS:
        _add(digest, _plain(attribute.value))


_WITH_OBJECTS = (
    ir.AttributeType.TENSOR,
    ir.AttributeType.TENSORS,
    ir.AttributeType.GRAPH,
    ir.AttributeType.GRAPHS,
)


def _attribute_tensors(attribute: ir.Attr) -> Iterator[ir.TensorProtocol]:
    if attribute.type == ir.AttributeType.TENSOR:
        yield attribute.as_tensor()
    elif attribute.type == ir.AttributeType.TENSORS:
        yield from attribute.as_tensors()


def _attribute_graphs(attribute: ir.Attr) -> Iterator[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        yield attribute.as_graph()
    elif attribute.type == ir.AttributeType.GRAPHS:
        yield from attribute.as_graphs()


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    return value if isinstance(value, int | str) else repr(value)


def _add_tensor(digest: hashlib._Hash, tensor: ir.TensorProtocol) -> None:
    _add(digest, ["tensor", _tensor_digest(tensor)])


def _tensor_digest(tensor: ir.TensorProtocol | None) -> str:
    if tensor is None:
        return ""
    digest = hashlib.sha256()
    _add(digest, [short_dtype(tensor.dtype), [int(size) for size in tensor.shape.numpy()]])
    for piece in pieces(tensor):
        digest.update(piece)
    return digest.hexdigest()
