"""Write down what is known of shapes: the dimensions that Shape gives, followed through the arithmetic on them.

An exporter's `x.view(x.size(0), -1)` becomes Shape → Gather → Unsqueeze → Concat → Reshape. Here each integer tensor
that comes from shapes is a vector whose entries are numbers, dimensions by name, or unknown; an operator of the table
below maps vectors to a vector. A tensor whose entries are all numbers becomes a constant. The target of a Reshape
does too if it can be written without the unknown: 0 copies the input's dimension at the same place, and one -1 stands
for the rest (dimensions that are not numbers are taken to be at least one).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import axes_of, constant, integers, is_standard
from graphopt.passes.cleanup.constants import constant_instead, remove_unused_constant
from graphopt.passes.cleanup.infer_node import infer_node
from graphopt.passes.cleanup.rewiring import add_initializer, remove_if_unused

# Longer integer tensors are data, not shapes.
_MAX_ENTRIES = 64
# Beyond this a 32-bit type would wrap around.
_LARGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Dimension:
    """A dimension that is not a number: by its name in the model, or, if it has none, as an axis of a value."""

    name: str
    value: ir.Value | None = None
    axis: int = 0


Entry = int | Dimension | None
# The entries of a tensor in a numpy array of objects, whose shape is the tensor's.
Entries = Any
Operands = Sequence[Entries | None]


def fold_shapes(model: ir.Model) -> int:
    """Fold in every graph of `model`; the number of tensors that became constants."""
    known = dict[ir.Value, Entries]()
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.graph is None or not is_standard(node):
            continue
        if is_standard(node, "Reshape"):
            count += _fold_target(node, known)
        infer_node(model, node)
        entries = _entries_of(model, node, known)
        if entries is None:
            continue
        output = node.outputs[0]
        known[output] = entries
        if all(isinstance(entry, int) for entry in entries.flat) and not output.is_graph_output() and output.uses():
            array = entries.astype(np.int64 if output.dtype is None else output.dtype.numpy())
            known[_substitute(node, array)] = entries
            count += 1
    return count


def _entries_of(model: ir.Model, node: ir.Node, known: Mapping[ir.Value, Entries]) -> Entries | None:
    rule = _RULES.get(node.op_type)
    if rule is None:
        return None
    try:
        entries = rule(model, node, [_operand(value, known) for value in node.inputs])
    except (IndexError, ValueError):
        return None  # the model is wrong here; whoever runs it will say so
    return entries if entries is not None and entries.size <= _MAX_ENTRIES else None


def _operand(value: ir.Value | None, known: Mapping[ir.Value, Entries]) -> Entries | None:
    if value is None or value in known:
        return None if value is None else known[value]
    if value.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    if value.shape is None or any(not isinstance(dim, int) or dim > _MAX_ENTRIES for dim in value.shape):
        return None
    array = constant(value)
    return None if array is None else _array(array.tolist())


def _array(entries: Any) -> Entries:
    return np.array(entries, dtype=object)


def _substitute(node: ir.Node, array: Any) -> ir.Value:
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"{node.op_type} '{node.name}' is not in a graph")
    output = node.outputs[0]
    initializer = constant_instead(graph, output, array)
    _remove_unused(output)
    return initializer


# The rules: entries of the output, from the node and the entries of its inputs.


def _dimensions(value: ir.Value | None) -> Entries | None:
    if value is None or value.shape is None:
        return None
    return _array(
        [
            dim if isinstance(dim, int) else Dimension(dim.value) if dim.value else Dimension("", value, axis)
            for axis, dim in enumerate(value.shape)
        ]
    )


def _shape(model: ir.Model, node: ir.Node, operands: Operands) -> Entries | None:
    dims = _dimensions(node.inputs[0])
    if dims is None:
        return None
    end = node.attributes.get_int("end", len(dims))
    return dims[node.attributes.get_int("start", 0) : end]


def _size(model: ir.Model, node: ir.Node, operands: Operands) -> Entries | None:
    dims = _dimensions(node.inputs[0])
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        return None
    return _array(int(np.prod(dims.astype(np.int64))))


def _gather(model: ir.Model, node: ir.Node, operands: Operands) -> Entries | None:
    data, indices = operands[0], operands[1]
    if data is None or indices is None or data.ndim != 1 or not _numbers(indices):
        return None
    return _array(data[indices.astype(np.int64)])


def _slice(model: ir.Model, node: ir.Node, operands: Operands) -> Entries | None:
    data = operands[0]
    starts, ends = integers(node, "starts", 1), integers(node, "ends", 2)
    steps = integers(node, "steps", 4) or (1,)
    if data is None or data.ndim != 1 or starts is None or ends is None or len(starts) != 1:
        return None
    if len(node.inputs) > 4 and node.inputs[4] is not None and constant(node.inputs[4]) is None:
        return None
    start, end, step = starts[0], ends[0], steps[0]
    if step < 0 and end < -len(data):
        return data[start::step]
    return data[start:end:step]


def _concat(model: ir.Model, node: ir.Node, operands: Operands) -> Entries | None:
    if any(operand is None or operand.ndim != 1 for operand in operands):
        return None
    return np.concatenate([operand for operand in operands if operand is not None])


def _squeeze(model: ir.Model, node: ir.Node, operands: Operands) -> Entries | None:
    data = operands[0]
    if data is None:
        return None
    if len(node.inputs) < 2 and "axes" not in node.attributes:
        return data.squeeze()
    axes = axes_of(node, data.ndim)
    return None if axes is None else data.squeeze(axes)


def _unsqueeze(model: ir.Model, node: ir.Node, operands: Operands) -> Entries | None:
    data = operands[0]
    count = integers(node, "axes", 1)
    if data is None or count is None:
        return None
    axes = axes_of(node, data.ndim + len(count))
    return None if axes is None else np.expand_dims(data, axes)


def _same(model: ir.Model, node: ir.Node, operands: Operands) -> Entries | None:
    return operands[0]


def _cast(model: ir.Model, node: ir.Node, operands: Operands) -> Entries | None:
    integer = node.attributes.get_int("to", 0) in (ir.DataType.INT64, ir.DataType.INT32)
    return operands[0] if integer else None


def _arithmetic(function: Callable[[int, int], int | None]) -> Callable[[ir.Model, ir.Node, Operands], Entries | None]:
    def entry(one: Entry, other: Entry) -> Entry:
        result = function(one, other) if isinstance(one, int) and isinstance(other, int) else None
        return None if result is None or abs(result) > _LARGEST else result

    def rule(model: ir.Model, node: ir.Node, operands: Operands) -> Entries | None:
        if operands[0] is None or operands[1] is None:
            return None
        return np.asarray(np.frompyfunc(entry, 2, 1)(operands[0], operands[1]), dtype=object)

    return rule


def _numbers(entries: Entries) -> bool:
    return all(isinstance(entry, int) for entry in entries.flat)


_RULES: dict[str, Callable[[ir.Model, ir.Node, Operands], Entries | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Identity": _same,
    "Cast": _cast,
    "Add": _arithmetic(lambda a, b: a + b),
    "Sub": _arithmetic(lambda a, b: a - b),
    "Mul": _arithmetic(lambda a, b: a * b),
    "Div": _arithmetic(lambda a, b: abs(a) // abs(b) * (1 if a * b > 0 else -1) if b else None),
}


def _fold_target(node: ir.Node, known: Mapping[ir.Value, Entries]) -> bool:
    """Make the target of a Reshape constant if its entries allow it."""
    old = node.inputs[1] if len(node.inputs) > 1 else None
    if old is None or old not in known or old.is_initializer():
        return False
    target = _written_target(known[old], _dimensions(node.inputs[0]), node)
    if target is None or not isinstance(node.graph, ir.Graph):
        return False
    array = np.array(target, dtype=np.int64)
    if len(old.uses()) == 1 and not old.is_graph_output():
        constant_instead(node.graph, old, array)
    else:
        node.replace_input_with(1, add_initializer(node.graph, f"{old.name}", array))
    _remove_unused(old)
    return True


def _written_target(entries: Entries, dims: Entries | None, node: ir.Node) -> list[int] | None:
    literal_zero = node.attributes.get_int("allowzero", 0) == 1
    target = list[int | None]()
    for axis, entry in enumerate(entries):
        if isinstance(entry, int):
            target.append(entry)
        elif not literal_zero and dims is not None and axis < len(dims) and entry is not None and dims[axis] == entry:
            target.append(0)
        else:
            target.append(None)
    unknown = target.count(None)
    if unknown == 1 and -1 not in target and not (literal_zero and 0 in target):
        target = [-1 if entry is None else entry for entry in target]
    return None if None in target else [entry for entry in target if entry is not None]


def _remove_unused(value: ir.Value) -> None:
    """Remove the nodes that made `value` if nothing else needs them."""
    producer = value.producer()
    if producer is None:
        remove_unused_constant(value)
        return
    inputs = [operand for operand in producer.inputs if operand is not None]
    if remove_if_unused(producer):
        for operand in inputs:
            _remove_unused(operand)
