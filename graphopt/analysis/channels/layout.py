"""How operators that move numbers carry channels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels.labels import Labelling, Labels, Role
from graphopt.analysis.channels.products import pass_batch
from graphopt.ir.reading import axes_of, constant, integers


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _labelled(node: ir.Node, state: Labelling) -> list[int]:
    value = node.inputs[0]
    return sorted(state.axes.get(value, {})) if value is not None else []


def transpose(node: ir.Node, state: Labelling) -> None:
    """Axis i of the result is axis perm[i]."""
    rank = _rank(node.inputs[0])
    if rank is None:
        return
    order = list(node.attributes.get_ints("perm", list(reversed(range(rank)))))
    for after, before in enumerate(order):
        state.write(node.outputs[0], after, state.claim(node, 0, before))


def squeeze(node: ir.Node, state: Labelling) -> None:
    """Axes of one number disappear; the others move up."""
    rank = _rank(node.inputs[0])
    value = node.inputs[0]
    if rank is None or value is None or value.shape is None:
        return
    gone = axes_of(node, rank)
    if gone is None:
        if "axes" in node.attributes or len(node.inputs) > 1:
            return
        gone = tuple(axis for axis in range(rank) if value.shape[axis] == 1)
    for axis in _labelled(node, state):
        if axis not in gone:
            after = axis - sum(other < axis for other in gone)
            state.write(node.outputs[0], after, state.claim(node, 0, axis))


def unsqueeze(node: ir.Node, state: Labelling) -> None:
    """Axes of one number appear."""
    rank = _rank(node.inputs[0])
    given = integers(node, "axes", 1)
    if rank is None or given is None:
        return
    total = rank + len(given)
    new = {axis % total for axis in given}
    old = [axis for axis in range(total) if axis not in new]
    for axis in _labelled(node, state):
        state.write(node.outputs[0], old[axis], state.claim(node, 0, axis))


def concat(node: ir.Node, state: Labelling) -> None:
    """Along its axis the channels of the operands follow each other; along the others they go together."""
    ranks = [_rank(value) for value in node.inputs]
    rank = ranks[0]
    if rank is None or any(other != rank for other in ranks):
        return
    joined = node.attributes.get_int("axis", 0) % rank
    for axis in range(rank):
        parts = [
            None if constant(value) is not None else state.claim(node, index, axis)
            for index, value in enumerate(node.inputs)
        ]
        present = [labels for labels in parts if labels is not None]
        if not present:
            continue
        if axis == joined:
            state.write(node.outputs[0], axis, _follow(node, state, axis, parts))
        else:
            for index in range(len(parts)):
                state.tie(node, index, axis, present[0])
            state.write(node.outputs[0], axis, present[0])


def _follow(node: ir.Node, state: Labelling, axis: int, parts: list[Labels | None]) -> Labels | None:
    """The labels one after the other. What stays whole gets labels that are protected."""
    found = []
    for index, labels in enumerate(parts):
        value = node.inputs[index]
        if labels is not None:
            found.append(labels)
        elif constant(value) is not None:
            found.append(state.label(node, index, axis, Role.ALONG))
        else:
            size = value.shape[axis] if value is not None and value.shape is not None else None
            if value is None or not isinstance(size, int):
                for known in parts:
                    if known is not None:
                        state.protect(known, f"Concat '{node.name}' joins them with a value of unknown size")
                return None
            found.append(state.fresh(size))
            state.protect(found[-1], f"they belong to '{value.name}', which stays whole")
    return np.concatenate(found)


def split(node: ir.Node, state: Labelling) -> None:
    """Each output takes a stretch of the axis."""
    rank = _rank(node.inputs[0])
    if rank is None or (len(node.inputs) > 1 and node.inputs[1] is not None and constant(node.inputs[1]) is None):
        return
    parted = node.attributes.get_int("axis", 0) % rank
    for axis in _labelled(node, state):
        sizes = [output.shape[axis] if output.shape is not None else None for output in node.outputs]
        if axis == parted and not all(isinstance(size, int) for size in sizes):
            continue
        labels = state.claim(node, 0, axis)
        if labels is None:
            continue
        start = 0
        for output, size in zip(node.outputs, sizes, strict=True):
            if axis == parted and isinstance(size, int):
                state.write(output, axis, labels[start : start + size])
                start += size
            else:
                state.write(output, axis, labels)


def slice_(node: ir.Node, state: Labelling) -> None:
    """The positions from start to end; along a labelled axis in steps of 1 alone."""
    rank = _rank(node.inputs[0])
    found = None if rank is None else slices(node, rank)
    if found is None:
        return
    for axis in _labelled(node, state):
        start, end, step = found.get(axis, (None, None, 1))
        if step == 1:
            labels = state.claim(node, 0, axis)
            state.write(node.outputs[0], axis, None if labels is None else labels[start:end])


def slices(node: ir.Node, rank: int) -> dict[int, tuple[int | None, int | None, int]] | None:
    """start, end and step by axis, as of a Python slice; None if they are not constant."""
    starts, ends = integers(node, "starts", 1), integers(node, "ends", 2)
    if starts is None or ends is None:
        return None
    axes: tuple[int, ...] | None = tuple(range(len(starts)))
    steps: tuple[int, ...] | None = (1,) * len(starts)
    if "axes" in node.attributes or (len(node.inputs) > 3 and node.inputs[3] is not None):
        axes = integers(node, "axes", 3)
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        steps = integers(node, "steps", 4)
    if axes is None or steps is None:
        return None
    return {axis % rank: each for axis, *each in zip(axes, starts, ends, steps, strict=True)}  # type: ignore[misc]


def gather(node: ir.Node, state: Labelling) -> None:
    """Constant indices select channels; what selects from other axes lets them pass."""
    rank = _rank(node.inputs[0])
    indices, index_rank = constant(node.inputs[1]), _rank(node.inputs[1])
    if rank is None or index_rank is None:
        return
    selected = node.attributes.get_int("axis", 0) % rank
    places = {axis: axis if axis < selected else axis + index_rank - 1 for axis in range(rank) if axis != selected}
    if constant(node.inputs[0]) is not None:
        if indices is None and rank == 2:  # an embedding: its width is made of channels
            for axis, after in places.items():
                state.write(node.outputs[0], after, state.label(node, 0, axis, Role.OUT))
        return
    for axis in _labelled(node, state):
        if axis != selected:
            state.write(node.outputs[0], places[axis], state.claim(node, 0, axis))
        elif indices is not None and indices.ndim < 2:
            labels = state.claim(node, 0, axis)
            if labels is not None and indices.ndim:
                state.write(node.outputs[0], axis, labels[indices])
            elif labels is not None:
                state.protect(labels[indices], f"Gather '{node.name}' selects it alone")


def pad(node: ir.Node, state: Labelling) -> None:
    """What constant padding adds along a labelled axis has labels of its own, so that less may be added."""
    rank = _rank(node.inputs[0])
    found = None if rank is None else pads(node, rank)
    if found is None:
        return
    constant_mode = node.attributes.get_string("mode", "constant") == "constant"
    for axis in _labelled(node, state):
        before, after = found.get(axis, (0, 0))
        if (before or after) and (not constant_mode or min(before, after) < 0):
            continue
        labels = state.claim(node, 0, axis)
        if labels is not None:
            state.write(node.outputs[0], axis, np.concatenate([state.fresh(before), labels, state.fresh(after)]))


def pads(node: ir.Node, rank: int) -> dict[int, tuple[int, int]] | None:
    """What is added before and after, by axis; None if that is not constant."""
    numbers = integers(node, "pads", 1)
    axes: tuple[int, ...] | None = tuple(range(rank))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = integers(node, "axes", 3)
    if numbers is None or axes is None or len(numbers) != 2 * len(axes):
        return None
    return {axis % rank: (numbers[i], numbers[i + len(axes)]) for i, axis in enumerate(axes)}


def tile(node: ir.Node, state: Labelling) -> None:
    """Axes that are not repeated pass."""
    repeats = integers(node, "repeats", 1)
    for axis in _labelled(node, state):
        if repeats is not None and repeats[axis] == 1:
            state.write(node.outputs[0], axis, state.claim(node, 0, axis))


def expand(node: ir.Node, state: Labelling) -> None:
    """Axes that keep their size pass; the shape must be constant, so that it can be changed."""
    value, result = node.inputs[0], node.outputs[0]
    if constant(node.inputs[1]) is None or value is None or value.shape is None or result.shape is None:
        return
    more = len(result.shape) - len(value.shape)
    for axis in _labelled(node, state):
        if value.shape[axis] == result.shape[axis + more]:
            state.write(result, axis + more, state.claim(node, 0, axis))


def depth_to_space(node: ir.Node, state: Labelling) -> None:
    """DCR: channel (b, b, c); CRD: channel (c, b, b). All that make one channel of the result go together."""
    pass_batch(node, state)
    labels = state.claim(node, 0, 1)
    blocks = node.attributes.get_int("blocksize", 1) ** 2
    if labels is None:
        return
    together = (
        labels.reshape(blocks, -1)
        if node.attributes.get_string("mode", "DCR") == "DCR"
        else labels.reshape(-1, blocks).T
    )
    state.link(together[:1], together)
    state.write(node.outputs[0], 1, together[0])


def space_to_depth(node: ir.Node, state: Labelling) -> None:
    """Channel (b, b, c) of the result comes from channel c."""
    pass_batch(node, state)
    labels = state.claim(node, 0, 1)
    if labels is not None:
        blocks = node.attributes.get_int("blocksize", 1) ** 2
        state.write(node.outputs[0], 1, np.tile(labels, blocks))


def shape(node: ir.Node, state: Labelling) -> None:
    """The shape may be read where no size of a labelled axis is looked at. It may be of a stretch of the axes alone."""
    rank = _rank(node.inputs[0])
    if node.outputs[0].is_graph_output() or rank is None:
        return
    end = node.attributes.get_int("end", rank)
    told = range(rank)[node.attributes.get_int("start", 0) : end]
    taken: set[int] = set()
    for reader in node.outputs[0].consumers():
        indices = constant(reader.inputs[1]) if reader.op_type == "Gather" else None
        if indices is None:
            return
        taken |= {told[int(index)] for index in indices.reshape(-1)}
    for axis in _labelled(node, state):
        if axis not in taken:
            state.claim(node, 0, axis)
