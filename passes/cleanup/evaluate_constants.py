"""Compute the nodes whose inputs are all constant, with ONNX Runtime, and put initializers in their place.

All foldable nodes of a graph run in one session, of which only the values that other nodes use are fetched. If the
session fails, they run one by one, so that one node that cannot be computed is named and stops only those behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.analysis.execution import Session
from graphopt.errors import GraphoptError
from graphopt.ir.palettes import makes_palette_indices
from graphopt.ir.reading import is_standard, static_shape
from graphopt.passes.cleanup.constants import constant_instead, layer_name, remove_unused_constant
from graphopt.passes.cleanup.rewiring import remove_if_unused, replace
from graphopt.pipeline.base import Declined

Array = npt.NDArray[np.generic]

# The oldest format that every opset fits in.
_IR_VERSION = 10
# Another run gives another result, or (Dropout) may give one.
_RANDOM = frozenset(
    "RandomUniform RandomNormal RandomUniformLike RandomNormalLike Multinomial Bernoulli Dropout".split()
)
# Folding these would hide from later passes and backends that the value is quantized.
_QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def evaluate_constants(model: ir.Model, max_bytes: int) -> tuple[int, tuple[Declined, ...]]:
    """Fold in every graph of `model`; the number of nodes folded, and those left alone with the reason."""
    count, declined = 0, list[Declined]()
    for graph in (model.graph, *model.graph.subgraphs()):
        nodes = _foldable(graph, max_bytes, declined)
        frontier = _used_elsewhere(nodes)
        arrays = _compute(model, nodes, frontier, declined)
        count += _substitute(graph, nodes, arrays, max_bytes, declined)
    return count, tuple(declined)


def _foldable(graph: ir.Graph, max_bytes: int, declined: list[Declined]) -> list[ir.Node]:
    """The nodes that depend on constants alone, in order."""
    known = set[ir.Value]()
    nodes = list[ir.Node]()
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if not inputs or not all(value in known or _is_constant(value) for value in inputs):
            continue
        reason = _reason_to_keep(node, inputs, known, max_bytes)
        if reason:
            declined.append(Declined(layer_name(node), reason))
            continue
        nodes.append(node)
        known.update(node.outputs)
    return nodes


def _reason_to_keep(node: ir.Node, inputs: Sequence[ir.Value], known: set[ir.Value], max_bytes: int) -> str:
    if not is_standard(node):
        return f"{node.op_type} is of the custom domain {node.domain!r}"
    if node.op_type in _RANDOM:
        return f"{node.op_type} is random"
    if node.op_type in _QUANTIZATION:
        return f"{node.op_type} of a constant is kept for the quantization that it carries"
    if makes_palette_indices(node):
        return f"{node.op_type} of a constant is kept for the palette that it indexes"
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return f"{node.op_type} over constants is not computed"
    for output in node.outputs:
        if isinstance(output.type, (ir.SequenceType, ir.OptionalType)) or output.dtype == ir.DataType.STRING:
            return f"its output is a {'string' if output.dtype == ir.DataType.STRING else 'sequence'}"
    size = sum(_bytes(output) for output in node.outputs)
    replaced = sum(_bytes(value) for value in set(inputs) if value in known or len(value.uses()) == 1)
    if size > max_bytes and size > replaced:
        return f"its result has {size} bytes, more than max_bytes={max_bytes} and than the constants it replaces"
    return ""


def _is_constant(value: ir.Value) -> bool:
    """Whether `constant` of it would give an array; does not read the data."""
    if value.is_graph_input():
        return False
    producer = value.producer()
    return value.is_initializer() or (producer is not None and is_standard(producer, "Constant"))


def _bytes(value: ir.Value) -> int:
    """The size of a value whose shape is known; 0 for others, whose size is small in practice (NonZero, Range)."""
    shape = static_shape(value)
    if shape is None or value.dtype in (None, ir.DataType.STRING, ir.DataType.UNDEFINED):
        return 0
    return int(np.prod(shape, dtype=np.int64) * value.dtype.itemsize)


def _used_elsewhere(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """All used outputs of the nodes that others than `nodes`, or the graph's outputs, need something of."""
    inside = set(nodes)
    wanted = list[ir.Value]()
    for node in nodes:
        outputs = [output for output in node.outputs if output.uses() or output.is_graph_output()]
        if any(output.is_graph_output() or not inside.issuperset(output.consumers()) for output in outputs):
            wanted.extend(outputs)
    return wanted


def _compute(
    model: ir.Model, nodes: Sequence[ir.Node], wanted: Sequence[ir.Value], declined: list[Declined]
) -> dict[ir.Value, Array]:
    if not wanted:
        return {}
    try:
        return _run(model, nodes, wanted, {})
    except GraphoptError:
        pass  # one of the nodes cannot be computed: find out which
    arrays = dict[ir.Value, Array]()
    computed, failed = list[ir.Node](), set[ir.Value]()
    for node in nodes:
        outputs = [output for output in node.outputs if output.name]
        if failed.isdisjoint(value for value in node.inputs if value is not None):
            try:
                arrays.update(_run(model, [node], outputs, arrays))
                computed.append(node)
                continue
            except GraphoptError as error:
                declined.append(Declined(layer_name(node), f"ONNX Runtime cannot compute it: {error.what}"))
        failed.update(outputs)
    return {value: arrays[value] for value in _used_elsewhere(computed)}


def _run(
    model: ir.Model, nodes: Sequence[ir.Node], wanted: Sequence[ir.Value], known: Mapping[ir.Value, Array]
) -> dict[ir.Value, Array]:
    """Run `nodes`, copied to a model of their own, and fetch the values `wanted`."""
    copies = dict[ir.Value, ir.Value]()
    initializers = list[ir.Value]()
    for value in dict.fromkeys(value for node in nodes for value in node.inputs if value is not None):
        tensor = ir.Tensor(known[value], name=value.name) if value in known else ir.convenience.get_const_tensor(value)
        if tensor is not None:
            shape = ir.Shape(tensor.shape.numpy())
            twin = ir.Value(name=value.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
            copies[value] = twin
            initializers.append(twin)
    program = list[ir.Node]()
    for node in nodes:
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else copies[value] for value in node.inputs],
            tuple(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for output, twin in zip(node.outputs, copy.outputs, strict=True):
            twin.name, twin.type, copies[output] = output.name, output.type, twin
        program.append(copy)
    graph = ir.Graph(
        [],
        [copies[value] for value in wanted],
        nodes=program,
        initializers=initializers,
        opset_imports=dict(model.opset_imports),
        name="constants",
    )
    fetched = Session(ir.Model(graph, ir_version=max(model.ir_version, _IR_VERSION)), threads=1).run({})
    return {value: _typed(fetched[value.name], value) for value in wanted if value.name}


def _typed(array: Array, value: ir.Value) -> Array:
    """Sessions give types that numpy lacks, such as bfloat16, as float32."""
    return array if value.dtype is None else array.astype(value.dtype.numpy(), copy=False)


def _substitute(
    graph: ir.Graph,
    nodes: Sequence[ir.Node],
    arrays: Mapping[ir.Value, Array],
    max_bytes: int,
    declined: list[Declined],
) -> int:
    """Let the constants `arrays` take the place of the values, and remove the nodes that nothing needs any more."""
    for node in nodes:
        outputs = [output for output in node.outputs if output.uses() or output.is_graph_output()]
        if not outputs or not all(output in arrays for output in outputs):
            continue
        size = sum(arrays[output].nbytes for output in outputs)
        if size > max_bytes and not all(_bytes(output) for output in outputs):
            declined.append(Declined(layer_name(node), f"its result has {size} bytes, more than max_bytes={max_bytes}"))
            continue
        for output in outputs:
            if output.is_graph_output():
                # an initializer cannot take the name of an output, a Constant node can
                constant = ir.node("Constant", [], {"value": ir.Tensor(arrays[output], name=output.name)})
                graph.insert_after(node, constant)
                replace(output, constant.outputs[0])
            else:
                constant_instead(graph, output, arrays[output])
    removed = 0
    for node in reversed(nodes):
        inputs = [value for value in node.inputs if value is not None]
        if remove_if_unused(node):
            removed += 1
            for value in inputs:
                remove_unused_constant(value)
    return removed
