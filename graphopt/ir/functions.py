"""Inline model-local functions, so that no pass has to know of them."""

from __future__ import annotations

import graphlib
from collections import Counter

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from graphopt.errors import ModelError
from graphopt.ir.names import rename_shadows

# A chain of functions that each call the next one twice doubles with every link.
MAX_INLINED_NODES = 1_000_000

_Key = tuple[str, str, str]


def check_functions(proto: onnx.ModelProto, origin: str) -> None:
    """Raise ModelError if functions call each other in a circle, or would inline to more than MAX_INLINED_NODES."""
    if not proto.functions:
        return
    own_nodes: dict[_Key, int] = {}
    calls: dict[_Key, Counter[_Key]] = {}
    known = {_function_key(function) for function in proto.functions}
    for function in proto.functions:
        key = _function_key(function)
        if key in own_nodes:
            raise ModelError(f"{origin} defines the function {function.name!r} of domain {function.domain!r} twice")
        own_nodes[key], calls[key] = _count(list(function.node), known)
    try:
        order = list(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        circle = " -> ".join(key[1] for key in error.args[1])
        raise ModelError(f"{origin} has functions that call each other in a circle: {circle}") from error
    total: dict[_Key, int] = {}
    for key in order:
        total[key] = own_nodes[key] + sum(count * total[callee] for callee, count in calls[key].items())
    nodes, called = _count(list(proto.graph.node), known)
    inlined = nodes + sum(count * total[callee] for callee, count in called.items())
    if inlined > MAX_INLINED_NODES:
        raise ModelError(f"{origin} has functions that expand to {inlined} nodes, expected at most {MAX_INLINED_NODES}")


def _count(nodes: list[onnx.NodeProto], known: set[_Key]) -> tuple[int, Counter[_Key]]:
    """How many nodes, in subgraphs too, and how often each function of `known` is called among them."""
    total = 0
    called: Counter[_Key] = Counter()
    while nodes:
        node = nodes.pop()
        total += 1
        key = (node.domain, node.op_type, node.overload)
        if key in known:
            called[key] += 1
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                nodes.extend(graph.node)
    return total, called


def _function_key(function: onnx.FunctionProto) -> _Key:
    return function.domain, function.name, function.overload


def to_model_opsets(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Inline by onnx's own inliner if a function was written for another opset than the model; else `proto` itself.

    onnx_ir's inliner, which keeps node metadata, leaves such functions to us.
    """
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    mismatch = any(
        opsets.get(entry.domain, entry.version) != entry.version
        for function in proto.functions
        for entry in function.opset_import
    )
    return onnx.inliner.inline_local_functions(proto, convert_version=True) if mismatch else proto


def inline(model: ir.Model, origin: str) -> None:
    """Inline every call of a model-local function, in place, and drop the functions.

    Raises:
        ModelError: a call does not fit its function.
    """
    domains = {domain for domain, _, _ in model.functions}
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            _name_all_outputs(node, model)
    try:
        InlinePass()(model)
    except Exception as error:  # ValueError, KeyError and others, by what does not fit
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{origin} calls a function in a way that does not fit it: {reason}") from error
    model.functions.clear()  # those that nothing calls
    used = {node.domain for node in model.graph.all_nodes()}
    for domain in domains - used:
        if domain:
            model.opset_imports.pop(domain, None)
    rename_shadows(model)


def _name_all_outputs(node: ir.Node, model: ir.Model) -> None:
    """A call may leave out outputs at the end, which the inliner does not understand."""
    function = model.functions.get(node.op_identifier())
    if function is not None and len(node.outputs) < len(function.outputs):
        node.resize_outputs(len(function.outputs))
