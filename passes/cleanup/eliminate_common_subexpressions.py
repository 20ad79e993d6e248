"""Compute once what is computed more than once.

Two nodes are equal if operator, attributes and inputs are; the inputs of commutative operators in any order. Two
initializers are equal if type, shape and bytes are. The later one gives way to the earlier, subgraphs may use what
the graph around them has computed, and an output of the graph keeps its name.

Never merged: operators that draw random numbers, dropout and normalization in training, operators with subgraphs,
and operators of custom domains, of which nobody says that they compute the same twice.

onnx_ir's CommonSubexpressionEliminationPass stays out of subgraphs, merges Bernoulli and dropout in training, and
compares the outputs by number alone; its DeduplicateInitializersPass stays within each graph. Hence this one.
"""

from __future__ import annotations

import hashlib
from collections import ChainMap, Counter
from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from graphopt.ir.reading import STANDARD_DOMAINS, constant
from graphopt.passes.cleanup.rewiring import remove_if_unused, replace
from graphopt.pipeline.base import Pass, PassContext, PassResult

PURE_DOMAINS = STANDARD_DOMAINS | {"ai.onnx.ml"}
RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"})

Scope = MutableMapping[Hashable, ir.Value]
Signature = tuple[ir.DataType, tuple[int, ...]]


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Merge equal nodes and equal initializers."""

    name: ClassVar[str] = "eliminate-common-subexpressions"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        signatures: Counter[Signature] = Counter()
        for graph in model.graphs():
            signatures.update(
                _signature(value) for value in graph.initializers.values() if value.const_value is not None
            )
        initializers, nodes, uses = _merge(model.graph, {}, signatures)
        return PassResult(
            changed=bool(initializers or nodes or uses), statistics={"nodes": nodes, "initializers": initializers}
        )


def _merge(graph: ir.Graph, outer: Scope, signatures: Counter[Signature]) -> tuple[int, int, int]:
    """Merge within `graph` and its subgraphs; how many initializers and nodes went, and how many other uses moved."""
    known: Scope = ChainMap({}, *(outer.maps if isinstance(outer, ChainMap) else [outer]))
    initializers = _merge_initializers(graph, known, signatures)
    nodes = uses = 0
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                inner = _merge(attribute.as_graph(), known, signatures)
                initializers, nodes, uses = initializers + inner[0], nodes + inner[1], uses + inner[2]
        key = _key(node)
        if key is None:
            continue
        first = known.get(key)
        if first is None:
            if node.outputs:
                known[key] = node.outputs[0]
            continue
        original = first.producer()
        assert original is not None
        moved = [replace(old, new) for old, new in zip(node.outputs, original.outputs, strict=True)]
        if remove_if_unused(node):
            nodes += 1
        else:
            uses += sum(moved)
    return initializers, nodes, uses


def _merge_initializers(graph: ir.Graph, known: Scope, signatures: Counter[Signature]) -> int:
    merged = 0
    for name, value in tuple(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or signatures[_signature(value)] < 2:
            continue
        key = ("initializer", *_signature(value), _digest(tensor))
        first = known.setdefault(key, value)
        if first is value or value.is_graph_output():
            continue
        value.replace_all_uses_with(first)
        del graph.initializers[name]
        merged += 1
    return merged


def _signature(value: ir.Value) -> Signature:
    tensor = value.const_value
    assert tensor is not None
    return tensor.dtype, tuple(int(dim) for dim in tensor.shape.numpy())


def _digest(tensor: ir.TensorProtocol) -> str:
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist())
    return hashlib.sha256(tensor.tobytes()).hexdigest()


def _key(node: ir.Node) -> Hashable | None:
    """What equal nodes have in common; None if the node must not be merged."""
    if node.domain not in PURE_DOMAINS or node.op_type in RANDOM or _trains(node):
        return None
    attributes = []
    for name in sorted(node.attributes):
        value = _attribute_key(node.attributes[name])
        if value is None:
            return None
        attributes.append((name, value))
    inputs = [id(value) if value is not None else 0 for value in node.inputs]
    while inputs and inputs[-1] == 0:
        inputs.pop()
    if node.op_type in COMMUTATIVE and node.domain in STANDARD_DOMAINS:
        inputs.sort()
    present = tuple(bool(output.name) for output in node.outputs)
    return (node.domain or "ai.onnx", node.op_type, node.overload, tuple(inputs), tuple(attributes), present)


def _trains(node: ir.Node) -> bool:
    """Whether a dropout or batch normalization may be in training mode, where it is random or has state."""
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        mode = constant(node.inputs[2])
        return mode is None or bool(mode.any())
    return node.op_type == "BatchNormalization" and len(node.outputs) > 1


def _attribute_key(attribute: ir.Attr) -> Hashable | None:
    if attribute.is_ref() or attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return None
    value: Any = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return ("TENSOR", value.dtype, tuple(value.shape.numpy()), _digest(value))
    if attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        return (attribute.type.name, repr(value))  # tells 0.0 from -0.0, and finds NaN equal to itself
    if attribute.type in (ir.AttributeType.INT, ir.AttributeType.STRING):
        return (attribute.type.name, value)
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.STRINGS):
        return (attribute.type.name, tuple(value))
    return None
