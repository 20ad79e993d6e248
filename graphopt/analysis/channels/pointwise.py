"""How operators that keep the place of each number carry channels: functions of one number, or of several operands.

Normalizations with a parameter for each channel are among them, and pooling, which keeps the channels apart.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analysis.channels.labels import Labelling, Labels
from graphopt.analysis.channels.products import pass_batch
from graphopt.ir.reading import axes_of, constant, is_standard


def unary(node: ir.Node, state: Labelling) -> None:
    """All axes of the first input pass; the others are scalars. A Dropout's mask counts them, and is left alone."""
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return
    value = node.inputs[0]
    for axis in list(state.axes.get(value, {})) if value is not None else ():
        state.write(node.outputs[0], axis, state.claim(node, 0, axis))


def broadcast(node: ir.Node, state: Labelling) -> None:
    """Operands are aligned at their last axis; where one is labelled, those of its size go with it."""
    shapes = [value.shape if value is not None else None for value in node.inputs]
    if any(value is not None and shape is None for value, shape in zip(node.inputs, shapes, strict=True)):
        return
    rank = max(len(shape) for shape in shapes if shape is not None)
    for distance in range(1, rank + 1):
        places = [
            (index, len(shape) - distance)
            for index, shape in enumerate(shapes)
            if shape is not None and len(shape) >= distance and shape[len(shape) - distance] != 1
        ]
        labels = _first([state.claim(node, *place) for place in places if constant(node.inputs[place[0]]) is None])
        if labels is not None:
            for place in places:
                state.tie(node, *place, labels)
            state.write(node.outputs[0], rank - distance, labels)


def _first(found: list[Labels | None]) -> Labels | None:
    return next((labels for labels in found if labels is not None), None)


def per_channel(node: ir.Node, state: Labelling) -> None:
    """BatchNormalization, InstanceNormalization: a parameter for each index of axis 1."""
    pass_batch(node, state)
    labels = state.claim(node, 0, 1)
    if labels is None:
        return
    for index in range(1, len(node.inputs)):
        state.tie(node, index, 0, labels)
    state.write(node.outputs[0], 1, labels)


def group_norm(node: ir.Node, state: Labelling) -> None:
    """Channels that are normalized together go together. Scale and bias: by group before opset 21, by channel since."""
    pass_batch(node, state)
    labels = state.claim(node, 0, 1)
    groups = node.attributes.get_int("num_groups", 1)
    if labels is None:
        return
    together = labels.reshape(groups, -1)
    state.link(together[:, :1], together)
    for index in (1, 2):
        array = constant(node.inputs[index])
        size = 0 if array is None else len(array)
        state.tie(node, index, 0, together[:, 0] if size == groups != len(labels) else labels)
    state.write(node.outputs[0], 1, labels)


def layer_norm(node: ir.Node, state: Labelling) -> None:
    """Axes before `axis` pass. Those from it on are summed over: that loses nothing only if all of them stay."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return
    rank = len(value.shape)
    first = node.attributes.get_int("axis", -1) % rank
    for axis in list(state.axes.get(value, {})):
        if axis < first or state.hidden_width:
            labels = state.claim(node, 0, axis)
            if labels is None:
                continue
            if axis >= first:
                _tie_from_end(node, state, rank - axis, labels)
            state.write(node.outputs[0], axis, labels)


def _tie_from_end(node: ir.Node, state: Labelling, distance: int, labels: Labels) -> None:
    for index in range(1, len(node.inputs)):
        value = node.inputs[index]
        if value is not None and value.shape is not None and len(value.shape) >= distance:
            axis = len(value.shape) - distance
            if value.shape[axis] != 1:
                state.tie(node, index, axis, labels)


def along_axis(node: ir.Node, state: Labelling) -> None:
    """Softmax, LogSoftmax, CumSum and their like work along one axis; the others pass."""
    value = node.inputs[0]
    if value is None or value.shape is None or node.graph is None:
        return
    rank = len(value.shape)
    if is_standard(node, "CumSum"):
        array = constant(node.inputs[1])
        worked = set(range(rank)) if array is None else {int(array.reshape(-1)[0]) % rank}
    else:
        old = node.graph.opset_imports.get("", 13) < 13
        axis = node.attributes.get_int("axis", 1 if old else -1) % rank
        worked = set(range(axis, rank)) if old else {axis}
    for axis in state.axes.get(value, {}):
        if axis not in worked:
            state.write(node.outputs[0], axis, state.claim(node, 0, axis))


def reduction(node: ir.Node, state: Labelling) -> None:
    """Axes that are not reduced pass, maybe with a new number."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return
    rank = len(value.shape)
    given = axes_of(node, rank)
    absent = "axes" not in node.attributes and (len(node.inputs) < 2 or node.inputs[1] is None)
    if given is None and not absent:
        return
    noop = node.attributes.get_int("noop_with_empty_axes", 0)
    reduced = given or (() if noop else tuple(range(rank)))
    keep = node.attributes.get_int("keepdims", 1)
    for axis in state.axes.get(value, {}):
        if axis not in reduced:
            after = axis if keep else axis - sum(other < axis for other in reduced)
            state.write(node.outputs[0], after, state.claim(node, 0, axis))
        elif state.hidden_width:
            state.claim(node, 0, axis)


def pooling(node: ir.Node, state: Labelling) -> None:
    """Channels pass; a MaxPool's indices count them, and are left alone."""
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return
    pass_batch(node, state)
    state.write(node.outputs[0], 1, state.claim(node, 0, 1))


def resize(node: ir.Node, state: Labelling) -> None:
    """Axes that keep their size pass, where no region of interest is given."""
    value, result = node.inputs[0], node.outputs[0]
    if value is None or value.shape is None or result.shape is None or "axes" in node.attributes:
        return
    roi = node.inputs[1] if len(node.inputs) > 2 else None
    array = constant(roi)
    if roi is not None and (array is None or array.size):
        return
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    if sizes is not None and constant(sizes) is None:
        return
    for axis in state.axes.get(value, {}):
        if value.shape[axis] == result.shape[axis]:
            state.write(result, axis, state.claim(node, 0, axis))
