"""How sums of products carry channels: convolutions and matrix products.

A weight sums over the channels of its input and makes new ones. Groups of a convolution stay equal in size: the k-th
channels of all groups go together. Where each input channel has a group of its own (depthwise), the group goes with it.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analysis.channels.labels import Labelling, Labels, Role
from graphopt.ir.reading import constant, static_shape


def convolution(node: ir.Node, state: Labelling) -> None:
    """X [N, C, …], W [M, C/group, …], B [M] → Y [N, M, …]."""
    weight = constant(node.inputs[1])
    if weight is None:
        return
    groups = node.attributes.get_int("group", 1)
    pass_batch(node, state)
    entering = state.claim(node, 0, 1)
    leaving = state.label(node, 1, 0, Role.OUT)
    if groups == 1:
        if entering is not None:
            state.tie(node, 1, 1, entering, Role.IN)
    elif weight.shape[1] == 1:
        if entering is None:
            state.protect(leaving, f"the input of the depthwise Conv '{node.name}' stays whole")
        else:
            state.link(leaving.reshape(groups, -1), entering[:, None])
    else:
        if entering is not None:
            state.link(entering.reshape(groups, -1), state.label(node, 1, 1, Role.IN)[None])
        across = leaving.reshape(groups, -1)
        state.link(across[:1], across)
    _bias(node, 2, leaving, state)
    state.write(node.outputs[0], 1, leaving)


def transposed_convolution(node: ir.Node, state: Labelling) -> None:
    """X [N, C, …], W [C, M/group, …], B [M] → Y [N, M, …]."""
    weight = constant(node.inputs[1])
    if weight is None:
        return
    groups = node.attributes.get_int("group", 1)
    pass_batch(node, state)
    entering = state.claim(node, 0, 1)
    if groups > 1 and groups == weight.shape[0]:  # depthwise: a group goes with its input channel
        if entering is None:
            return
        state.tie(node, 1, 0, entering, Role.IN)
        leaving = entering.repeat(weight.shape[1])
    else:
        if entering is not None:
            state.tie(node, 1, 0, entering, Role.IN)
            across = entering.reshape(groups, -1)
            state.link(across[:1], across)
        made = state.label(node, 1, 1, Role.OUT)
        leaving = made if groups == 1 else _repeated(made, groups)
    _bias(node, 2, leaving, state)
    state.write(node.outputs[0], 1, leaving)


def _repeated(labels: Labels, times: int) -> Labels:
    return labels[None].repeat(times, axis=0).reshape(-1)


def _bias(node: ir.Node, index: int, labels: Labels, state: Labelling) -> None:
    if len(node.inputs) > index and node.inputs[index] is not None:
        state.tie(node, index, 0, labels)


def pass_batch(node: ir.Node, state: Labelling) -> None:
    """Labels of axis 0 pass through."""
    state.write(node.outputs[0], 0, state.claim(node, 0, 0))


def gemm(node: ir.Node, state: Labelling) -> None:
    """A [M, K], B [K, N], each maybe transposed, C that broadcasts → Y [M, N]."""
    transposed = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
    rows, left = (1, 0) if transposed[0] else (0, 1)
    right, columns = (1, 0) if transposed[1] else (0, 1)
    _contract(node, state, left, right)
    made = _kept(node, state, 0, rows), _kept(node, state, 1, columns)
    for axis, labels in enumerate(made):
        if labels is None:
            continue
        shape = static_shape(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else ()
        place = None if shape is None else len(shape) - 2 + axis
        if shape is None:
            state.protect(labels, f"the shape of C of Gemm '{node.name}' is unknown")
        elif place is not None and place >= 0 and shape[place] != 1:
            state.tie(node, 2, place, labels)
        state.write(node.outputs[0], axis, labels)


def matrix_product(node: ir.Node, state: Labelling) -> None:
    """A […, M, K] and B […, K, N] → […, M, N]; the axes before the last two broadcast."""
    ranks = [len(value.shape) if value is not None and value.shape is not None else 0 for value in node.inputs]
    if min(ranks) < 1:
        return
    left, right = ranks[0] - 1, max(ranks[1] - 2, 0)
    _contract(node, state, left, right)
    rank = max(ranks) if min(ranks) > 1 else max(ranks) - 1
    if ranks[0] > 1:
        state.write(node.outputs[0], rank - (2 if ranks[1] > 1 else 1), _kept(node, state, 0, ranks[0] - 2))
    if ranks[1] > 1:
        state.write(node.outputs[0], rank - 1, _kept(node, state, 1, ranks[1] - 1))
    for distance in range(3, max(ranks) + 1):
        _batch_axis(node, state, ranks, distance)


def _contract(node: ir.Node, state: Labelling, left: int, right: int) -> None:
    """Axis `left` of A and axis `right` of B are summed over. Of two computed operands nobody claims them: what such
    a sum is without a channel no weight can tell.
    """
    places = ((0, left), (1, right))
    constants = [constant(node.inputs[index]) is not None for index, _ in places]
    if constants[0] == constants[1]:
        return
    labels = state.claim(node, *places[constants[0]])
    if labels is not None:
        state.tie(node, *places[constants[1]], labels, Role.IN)


def _kept(node: ir.Node, state: Labelling, index: int, axis: int) -> Labels | None:
    """The labels of an axis that the product keeps: a weight's are new channels."""
    if constant(node.inputs[index]) is not None:
        return state.label(node, index, axis, Role.OUT)
    return state.claim(node, index, axis)


def _batch_axis(node: ir.Node, state: Labelling, ranks: list[int], distance: int) -> None:
    """The axis that many places from the end: heads of an attention."""
    found: Labels | None = None
    for index, rank in enumerate(ranks):
        if rank >= distance and constant(node.inputs[index]) is None:
            labels = state.claim(node, index, rank - distance)
            found = labels if found is None else found
    if found is None:
        return
    for index, rank in enumerate(ranks):
        value = node.inputs[index]
        if rank >= distance and value is not None and value.shape is not None and value.shape[rank - distance] != 1:
            state.tie(node, index, rank - distance, found)
    state.write(node.outputs[0], max(ranks) - distance, found)
