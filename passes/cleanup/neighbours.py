"""Folding a scale and shift of each channel into the linear operators next to them in the graph."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphopt.ir.reading import is_standard
from graphopt.passes.cleanup.constants import remove_unused_constant
from graphopt.passes.cleanup.linear import LINEAR, Affine, Fold, fold_after, fold_before
from graphopt.passes.cleanup.rewiring import replace

# From a value's rank and the axis of its channels to what is applied there, or why that is not by channel.
AffineAt = Callable[[int, int], Affine | str]


def fold_into_producer(node: ir.Node, source: ir.Value, affine_at: AffineAt, *operators: str) -> str:
    """Fold `node`, which applies the affine to `source`, into the node that makes `source`; the reason if not."""
    producer = source.producer()
    if producer is None or not is_standard(producer, *operators):
        return f"no {_listed(operators)} before it"
    if producer.graph is not node.graph:
        return f"{producer.op_type} '{producer.name}' before it is outside of its subgraph"
    if len(source.uses()) > 1 or source.is_graph_output():
        return f"the output of {producer.op_type} '{producer.name}' before it is also used elsewhere"
    fold = _fold_at(producer, source, affine_at, fold_after)
    if isinstance(fold, str):
        return fold
    fold.apply()
    _remove(node, source)
    return ""


def fold_into_consumers(node: ir.Node, source: ir.Value, affine_at: AffineAt) -> str:
    """Fold `node`, which applies the affine to `source`, into all nodes that read its output; the reason if not."""
    output = node.outputs[0]
    uses = tuple(output.uses())
    if output.is_graph_output():
        return "its output is an output of the graph"
    if not uses or any(index or not is_standard(user, *LINEAR) for user, index in uses):
        return f"what reads it is not always a {_listed(LINEAR)}"
    if any(user.graph is not node.graph for user, _ in uses):
        return "its output is used in a subgraph"
    folds = list[Fold]()
    for user, _ in uses:
        fold = _fold_at(user, output, affine_at, fold_before)
        if isinstance(fold, str):
            return fold
        folds.append(fold)
    for fold in folds:
        fold.apply()
    _remove(node, source)
    return ""


def _fold_at(
    linear: ir.Node, value: ir.Value, affine_at: AffineAt, fold: Callable[[ir.Node, Affine], Fold | str]
) -> Fold | str:
    place = _channels_at(linear, value)
    if place is None:
        return f"the rank of '{value.name}' is unknown"
    affine = affine_at(*place)
    if isinstance(affine, str):
        return affine
    return fold(linear, affine) if affine.is_finite() else "its constants are not finite"


def _channels_at(linear: ir.Node, value: ir.Value) -> tuple[int, int] | None:
    """The rank of the input or output `value` of a linear node, and the axis of the channels there."""
    if linear.op_type in ("Conv", "ConvTranspose"):
        weight = linear.inputs[1]
        return None if weight is None or weight.shape is None else (len(weight.shape), 1)
    if linear.op_type == "Gemm":
        return 2, 1
    if value.shape is None:
        return None
    rank = len(value.shape)
    return rank, 1 if linear.op_type == "BatchNormalization" else rank - 1


def _remove(node: ir.Node, source: ir.Value) -> None:
    """Take `node` out of the graph; its output becomes `source`."""
    constants = [value for value in node.inputs if value is not None and value is not source]
    replace(node.outputs[0], source)
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    for value in constants:
        remove_unused_constant(value)


def _listed(operators: tuple[str, ...]) -> str:
    return ", ".join(operators[:-1]) + f" or {operators[-1]}"
