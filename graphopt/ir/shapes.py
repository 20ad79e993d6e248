"""Refresh types and shapes after an edit: what is stale goes first, then ONNX infers anew."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.serde

from graphopt.errors import ShapeError
from graphopt.ir.admission import is_standard
from graphopt.ir.inference import infer
from graphopt.ir.interface import Dim, format_shape, shape_of
from graphopt.ir.light import light_proto
from graphopt.ir.text import to_text, value_text


def refresh_shapes(model: ir.Model) -> None:
    """Infer the types and shapes of all values anew, in place.

    What is declared stays: inputs, also those of loop bodies; the known sizes and symbols of outputs; and the outputs
    of custom operators, whose shapes nothing else tells. Sizes that depend on data stay symbols.

    Raises:
        ShapeError: an operator cannot take its inputs, or an output contradicts its declaration; `model` is unchanged.
    """
    bare = model.clone()
    declared = {value.name: shape_of(value) for value in model.graph.outputs}
    _drop_stale(bare)
    inferred = infer(bare, light_proto(bare))
    _check_outputs(model, inferred, declared)
    _adopt(model, bare, inferred)


def _drop_stale(model: ir.Model) -> None:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.dtype = value.const_value.dtype
                value.shape = ir.Shape(value.const_value.shape.numpy())
        for node in graph:
            if is_standard(node.domain):
                for value in node.outputs:
                    value.shape = None
                    # A main graph's output must have a type in the file, and its type never changes.
                    if not (value.is_graph_output() and graph is model.graph):
                        value.type = None


def _check_outputs(
    model: ir.Model, inferred: onnx.ModelProto, declared: dict[str | None, tuple[Dim, ...] | None]
) -> None:
    for proto, value in zip(inferred.graph.output, model.graph.outputs, strict=True):
        found = _plain_shape(proto.type)
        expected = declared[value.name]
        if found is None or expected is None:
            continue
        same_rank = len(found) == len(expected)
        if not same_rank or any(
            isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(found, expected, strict=True)
        ):
            producer = value.producer()
            raise ShapeError(
                f"output {value_text(value)} is declared as {format_shape(expected)}, but has {format_shape(found)}",
                where=to_text(model, around=producer) if producer is not None else "",
                advice="an edit must keep the shapes of the graph's outputs",
            )


def _plain_shape(proto: onnx.TypeProto) -> tuple[Dim, ...] | None:
    shape = ir.serde.deserialize_type_proto_for_shape(proto)
    return None if shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in shape)


def _adopt(model: ir.Model, bare: ir.Model, inferred: onnx.ModelProto) -> None:
    """Write the inferred types and shapes into `model`, graph by graph."""
    result = ir.serde.deserialize_model(inferred)
    outputs = set(model.graph.outputs)
    inputs = set(model.graph.inputs)
    for graph, bare_graph, result_graph in zip(model.graphs(), bare.graphs(), result.graphs(), strict=True):
        found = {value.name: value for value in _own_values(result_graph) if value.name}
        for value, stripped in zip(_own_values(graph), _own_values(bare_graph), strict=True):
            if value in inputs:
                continue
            new = found.get(value.name or "", stripped)
            value.type = new.type or stripped.type
            shape = new.shape if new.shape is not None else stripped.shape
            if value in outputs:
                shape = _declared_first(value.shape, shape)
            value.shape = None if shape is None else ir.Shape(shape)


def _own_values(graph: ir.Graph) -> list[ir.Value]:
    made = [value for node in graph for value in node.outputs]
    return list(dict.fromkeys([*graph.inputs, *graph.initializers.values(), *made]))


def _declared_first(declared: ir.Shape | None, inferred: ir.Shape | None) -> ir.Shape | None:
    """The declared shape of an output, with inferred sizes where it says nothing."""
    if declared is None or inferred is None or len(declared) != len(inferred):
        return declared if declared is not None else inferred
    return ir.Shape(
        [
            theirs if not isinstance(mine, int) and mine.value is None else mine
            for mine, theirs in zip(declared, inferred, strict=True)
        ]
    )
