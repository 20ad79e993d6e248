"""How each operator carries lanes from what it reads to what it makes, as a table.

What has no rule pins the lanes that it reads, and its results have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import axes_of, constant, integers, is_standard, static_shape
from graphopt.passes.cleanup.bounds import bounds_of
from graphopt.passes.cleanup.constants import layer_name
from graphopt.passes.cleanup.linear import LINEAR
from graphopt.passes.quantize.lane_ports import layer_norm, linear, product
from graphopt.passes.quantize.lanes import Array, Carried, Lanes, Tracks, aligned, rank_of

_MAX_ELEMENTS = 1 << 26  # of a value whose lanes are reshaped
_SILENT = ("Shape", "Size")  # do not look at the numbers


def lanes_of(graph: ir.Graph, *, split_bounds: bool = False) -> Lanes:
    """The lanes of the main graph, which is left as it is.

    Args:
        split_bounds: a Clip may become bounds by channel, instead of pinning what it bounds.
    """
    tracks = Tracks()
    for node in graph:
        if is_standard(node, *_SILENT):
            continue
        rule = RULES.get(node.op_type) if is_standard(node) else None
        if rule is None:
            tracks.pin_inputs(node)
        elif node.op_type == "Clip" and not split_bounds and not _is_homogeneous_clip(node):
            tracks.pin_inputs(node, f"Clip '{layer_name(node)}' bounds all its channels alike")
        else:
            rule(tracks, node)
        for output in node.outputs:
            if output in tracks.of:
                _pin_where_it_leaves(tracks, graph, output)
    return tracks.settled()


def _pin_where_it_leaves(tracks: Tracks, graph: ir.Graph, value: ir.Value) -> None:
    if value.is_graph_output():
        tracks.pin(tracks.of[value], f"'{value.name}' is an output of the graph")
    inner = next((user for user in value.consumers() if user.graph is not graph), None)
    if inner is not None:
        tracks.pin(tracks.of[value], f"{inner.op_type} '{layer_name(inner)}' in a subgraph reads it")


def _same(tracks: Tracks, node: ir.Node) -> None:
    lanes = tracks.read(node)
    if lanes is not None:
        tracks.of[node.outputs[0]] = lanes


def _prelu(tracks: Tracks, node: ir.Node) -> None:
    slope = tracks.read(node, 1)
    if slope is not None:
        tracks.pin(slope, f"PRelu '{layer_name(node)}' has it for a slope")
    _same(tracks, node)


def _pool(tracks: Tracks, node: ir.Node) -> None:
    lanes = tracks.read(node)
    if lanes is not None and any(size != 1 for size in lanes.shape[2:]):
        tracks.pin_inputs(node)
    else:
        _same(tracks, node)


def _is_homogeneous_clip(node: ir.Node) -> bool:
    found = bounds_of(node)
    return found is not None and all(bound == 0 or math.isinf(bound) for bound in (found[1].low, found[1].high))


def _clip(tracks: Tracks, node: ir.Node) -> None:
    lanes = tracks.read(node)
    if lanes is None:
        return
    if bounds_of(node) is None:
        tracks.pin_inputs(node)
        return
    tracks.of[node.outputs[0]] = lanes
    if not _is_homogeneous_clip(node):
        tracks.carried.append(Carried(node, lanes))


def _pad(tracks: Tracks, node: ir.Node) -> None:
    lanes = tracks.read(node)
    if lanes is None:
        return
    pads = integers(node, "pads", 1)
    filling = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(filling) if filling is not None else np.array(node.attributes.get_float("value", 0.0))
    zeros = node.attributes.get_string("mode", "constant") == "constant" and array is not None and not array.any()
    axes = integers(node, "axes", 3) or tuple(range(lanes.ndim))
    if pads is None or len(pads) != 2 * len(axes):
        tracks.pin_inputs(node, f"Pad '{layer_name(node)}' pads by numbers that are known only at run time")
        return
    widths = [(0, 0)] * lanes.ndim
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if lanes.shape[axis] != 1:
            widths[axis] = before, after
    if not zeros and (node.attributes.get_string("mode", "constant") == "constant" or np.any(widths)):
        tracks.pin_inputs(node, f"Pad '{layer_name(node)}' puts other numbers than 0 beside it")
    elif np.min(widths) < 0:
        tracks.pin_inputs(node, f"Pad '{layer_name(node)}' takes channels away")
    else:
        padded = np.pad(lanes, widths, constant_values=-1)
        added = padded < 0
        padded[added] = tracks.fresh(int(added.sum()))  # channels of zeros take any scale
        tracks.of[node.outputs[0]] = padded


def _resize(tracks: Tracks, node: ir.Node) -> None:
    lanes, sizes = tracks.read(node), static_shape(node.outputs[0])
    if lanes is None:
        return
    mode = node.attributes.get_string("coordinate_transformation_mode", "")
    kept = sizes is not None and all(n in (1, m) for n, m in zip(lanes.shape, sizes, strict=True))
    if not kept or mode == "tf_crop_and_resize":
        tracks.pin_inputs(node)
    else:
        _same(tracks, node)


def _transpose(tracks: Tracks, node: ir.Node) -> None:
    lanes = tracks.read(node)
    if lanes is not None:
        order = node.attributes.get_ints("perm", tuple(reversed(range(lanes.ndim))))
        tracks.of[node.outputs[0]] = lanes.transpose(order)


def _reshape(tracks: Tracks, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze, by the shapes before and after."""
    lanes = tracks.read(node)
    if lanes is None:
        return
    found = reshaped(lanes, node.inputs[0], node.outputs[0])
    if found is None:
        tracks.pin_inputs(node, f"{node.op_type} '{layer_name(node)}' moves it to axes whose sizes are not known")
    else:
        tracks.of[node.outputs[0]] = found


def reshaped(lanes: Array, before: ir.Value | None, after: ir.Value) -> Array | None:
    """`lanes` of `before` as those of `after`, which has the same numbers in order; None if that is unknown."""
    old, new = static_shape(before), static_shape(after)
    if old is not None and new is not None and math.prod(old) == math.prod(new) <= _MAX_ELEMENTS:
        full = np.broadcast_to(lanes, old).reshape(new)
        for axis in range(full.ndim):
            first = full.take([0], axis) if full.shape[axis] else full
            if np.array_equal(np.broadcast_to(first, full.shape), full):
                full = first
        return full
    if after.shape is None or any(size != 1 for size in lanes.shape[:-1]):
        return None
    last = after.shape.dims[-1] if len(after.shape) else None  # other axes are merged or split
    return lanes.reshape((1,) * (len(after.shape) - 1) + (-1,)) if last == lanes.size else None


def _slice(tracks: Tracks, node: ir.Node) -> None:
    lanes = tracks.read(node)
    if lanes is None:
        return
    starts, ends = integers(node, "starts", 1), integers(node, "ends", 2)
    axes, steps = integers(node, "axes", 3), integers(node, "steps", 4)
    unknown = (axes is None and len(node.inputs) > 3) or (steps is None and len(node.inputs) > 4)
    if starts is None or ends is None or unknown:
        tracks.pin_inputs(node, f"Slice '{layer_name(node)}' takes channels that are known only at run time")
        return
    axes = axes if axes is not None else tuple(range(len(starts)))
    for number, axis in enumerate(axes):
        step = steps[number] if steps is not None else 1
        if lanes.shape[axis] != 1:
            size = lanes.shape[axis]
            end = ends[number] if ends[number] >= -size else None  # before the first
            start, stop = starts[number], end if step < 0 else ends[number]
            lanes = lanes[(slice(None),) * (axis % lanes.ndim) + (slice(start, stop, step),)]
    tracks.of[node.outputs[0]] = lanes


def _split(tracks: Tracks, node: ir.Node) -> None:
    lanes = tracks.read(node)
    if lanes is None:
        return
    axis = node.attributes.get_int("axis", 0) % lanes.ndim
    shapes = [static_shape(output) for output in node.outputs]
    if lanes.shape[axis] == 1:
        tracks.of |= dict.fromkeys(node.outputs, lanes)
    elif any(shape is None for shape in shapes):
        tracks.pin_inputs(node, f"Split '{layer_name(node)}' makes parts of unknown sizes")
    else:
        ends = np.cumsum([shape[axis] for shape in shapes if shape is not None])
        parts = np.split(lanes, ends[:-1], axis)
        tracks.of |= dict(zip(node.outputs, parts, strict=True))


def _gather(tracks: Tracks, node: ir.Node) -> None:
    lanes, chosen = tracks.read(node), constant(node.inputs[1])
    if lanes is None:
        return
    axis = node.attributes.get_int("axis", 0) % lanes.ndim
    rank = rank_of(node.inputs[1])
    if lanes.shape[axis] == 1 and rank is not None:
        tracks.of[node.outputs[0]] = lanes.reshape(*lanes.shape[:axis], *(1,) * rank, *lanes.shape[axis + 1 :])
    elif chosen is not None:
        tracks.of[node.outputs[0]] = lanes.take(chosen.astype(np.int64), axis)
    else:
        tracks.pin_inputs(node, f"Gather '{layer_name(node)}' takes channels that are known only at run time")


def _concat(tracks: Tracks, node: ir.Node) -> None:
    """What has no lanes gets pinned ones."""
    if not any(value in tracks.of for value in node.inputs):
        return
    shapes = [static_shape(value) for value in node.inputs]
    rank = next(tracks.of[value].ndim for value in node.inputs if value is not None and value in tracks.of)
    axis = node.attributes.get_int("axis", 1) % rank
    parts = []
    for value, shape in zip(node.inputs, shapes, strict=True):
        if value is None or shape is None:
            tracks.pin_inputs(node, f"Concat '{layer_name(node)}' joins parts of unknown sizes")
            return
        if value not in tracks.of:
            foreign = tracks.fresh(1).reshape((1,) * rank)
            tracks.pin(foreign, f"Concat '{layer_name(node)}' joins it with numbers that no layer scales")
            parts.append((foreign, shape))
        else:
            parts.append((tracks.of[value], shape))
    common = np.broadcast_shapes(*((*lanes.shape[:axis], 1, *lanes.shape[axis + 1 :]) for lanes, _ in parts))
    if all(lanes.shape[axis] == 1 for lanes, _ in parts) and math.prod(common) > 1:
        for lanes, _ in parts[1:]:  # along another axis than that of the channels
            tracks.join(parts[0][0], lanes)
        tracks.of[node.outputs[0]] = np.broadcast_to(parts[0][0], common)
        return
    full = [np.broadcast_to(n, (*common[:axis], shape[axis], *common[axis + 1 :])) for n, shape in parts]
    tracks.of[node.outputs[0]] = np.concatenate(full, axis)


def _expand(tracks: Tracks, node: ir.Node) -> None:
    lanes, rank = tracks.read(node), rank_of(node.outputs[0])
    if lanes is None:
        return
    if rank is None:
        tracks.pin_inputs(node, f"{node.op_type} '{layer_name(node)}' gives it an unknown rank")
    else:
        tracks.of[node.outputs[0]] = aligned(lanes, rank)


def _tile(tracks: Tracks, node: ir.Node) -> None:
    lanes, repeats = tracks.read(node), constant(node.inputs[1])
    if lanes is None:
        return
    if repeats is None:
        tracks.pin_inputs(node)
    else:
        counts = [int(count) if size != 1 else 1 for count, size in zip(repeats, lanes.shape, strict=True)]
        tracks.of[node.outputs[0]] = np.tile(lanes, counts)


def _reduce(tracks: Tracks, node: ir.Node) -> None:
    lanes = tracks.read(node)
    if lanes is None:
        return
    axes = axes_of(node, lanes.ndim)
    if axes is None or any(lanes.shape[axis] != 1 for axis in axes):
        tracks.pin_inputs(node, f"{node.op_type} '{layer_name(node)}' reduces over its channels")
    else:
        kept = node.attributes.get_int("keepdims", 1)
        tracks.of[node.outputs[0]] = lanes if kept else np.squeeze(lanes, axes)


def _sum(tracks: Tracks, node: ir.Node) -> None:
    """Add, Sub, Min, Max and Sum: all operands have one scale; constants take it."""
    values = [value for value in node.inputs if value is not None]
    tracked = [value for value in values if value in tracks.of]
    constants = [value for value in values if value not in tracks.of and constant(value) is not None]
    if not tracked:
        return
    rank = rank_of(node.outputs[0])
    if len(tracked) + len(constants) < len(values) or rank is None:
        tracks.pin_inputs(node, f"{node.op_type} '{layer_name(node)}' joins it with numbers that no layer scales")
        return
    operands = [aligned(tracks.of[value], rank) for value in tracked]
    for lanes in operands[1:]:
        tracks.join(operands[0], lanes)
    result = np.broadcast_to(operands[0], np.broadcast_shapes(*(lanes.shape for lanes in operands)))
    tracks.of[node.outputs[0]] = result
    if constants:
        tracks.carried.append(Carried(node, result))


Rule = Callable[[Tracks, ir.Node], None]
RULES: dict[str, Rule] = {
    **dict.fromkeys(LINEAR, linear),
    **dict.fromkeys(("Relu", "LeakyRelu", "Identity", "Dropout", "Abs", "Neg"), _same),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pool),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _reduce),
    **dict.fromkeys(("Add", "Sub", "Min", "Max", "Sum"), _sum),
    **dict.fromkeys(("Mul", "Div"), product),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Clip": _clip,
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "LayerNormalization": layer_norm,
    "PRelu": _prelu,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Tile": _tile,
    "Transpose": _transpose,
}
