"""Surgery: take units of channels out of a graph.

Constants lose the positions of the units. What counts channels elsewhere, an attribute or a constant of sizes, is
adjusted by operator; everything else follows from the shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels import Channels
from graphopt.analysis.channels.layout import pads, slices
from graphopt.ir.reading import STANDARD_DOMAINS, constant, is_standard
from graphopt.passes.cleanup.constants import constant_instead, set_constant

Array = np.ndarray[Any, Any]


def remove_units(graph: ir.Graph, found: Channels, gone: Array) -> None:
    """Rewrite `graph` in place.

    Args:
        graph: that `found` was made of, unchanged since. Shapes of computed values are stale afterwards.
        found: its channels.
        gone: bool [found.count], the units to remove: none that is protected, and not all of any axis.

    Raises ValueError if an axis would be left with nothing, before anything is changed.
    """
    for value, axes in found.axes.items():
        for axis, units in axes.items():
            if gone[units].all():
                raise ValueError(f"axis {axis} of '{value.name}' would be left with no channel")
    cut = _Cut(found, ~gone)
    adjustments = [(node, _ADJUST[node.op_type]) for node in graph if is_standard(node) and node.op_type in _ADJUST]
    for node, adjust in adjustments:
        adjust(node, cut)
    for value, axes in found.axes.items():
        array = constant(value)
        if array is None or not any(gone[units].any() for units in axes.values()):
            continue
        for axis, units in axes.items():
            array = np.compress(~gone[units], array, axis=axis)
        _replace(graph, value, np.ascontiguousarray(array))


def _replace(graph: ir.Graph, value: ir.Value, array: Array) -> None:
    """Give every reader of a constant the new one."""
    producer = value.producer()
    if producer is None:
        value.const_value, value.shape = ir.Tensor(array, name=value.name), ir.Shape(array.shape)
        return
    constant_instead(graph, value, array)
    graph.remove(producer, safe=True)


class _Cut:
    """What is left: of an axis, by value."""

    def __init__(self, found: Channels, kept: Array) -> None:
        self._found = found
        self._kept = kept

    def positions(self, value: ir.Value | None, axis: int) -> Array | None:
        """bool: the positions of the axis that stay. None if all do."""
        units = self._found.units_of(value, axis)
        if units is None or self._kept[units].all():
            return None
        positions: Array = self._kept[units]
        return positions


def _left(value: ir.Value | None, cut: _Cut) -> list[int | None] | None:
    """The sizes after the cut, None for one that is unknown; None if the cut does not touch them."""
    if value is None or value.shape is None:
        return None
    sizes: list[int | None] = [size if isinstance(size, int) else None for size in value.shape]
    touched = False
    for axis in range(len(sizes)):
        positions = cut.positions(value, axis)
        if positions is not None:
            sizes[axis], touched = int(positions.sum()), True
    return sizes if touched else None


def _convolution(node: ir.Node, cut: _Cut) -> None:
    """A depthwise one has as many groups as channels."""
    groups = node.attributes.get_int("group", 1)
    weight = constant(node.inputs[1])
    positions = cut.positions(node.inputs[0], 1)
    if weight is None or groups == 1 or positions is None:
        return
    if (weight.shape[1] == 1) if node.op_type == "Conv" else (weight.shape[0] == groups):
        node.attributes["group"] = ir.AttrInt64("group", int(positions.sum()))


def _group_norm(node: ir.Node, cut: _Cut) -> None:
    positions = cut.positions(node.inputs[0], 1)
    if positions is not None:
        groups = positions.reshape(node.attributes.get_int("num_groups", 1), -1)[:, 0]
        node.attributes["num_groups"] = ir.AttrInt64("num_groups", int(groups.sum()))


def _recurrence(node: ir.Node, cut: _Cut) -> None:
    positions = cut.positions(node.inputs[2], 2)
    if positions is not None:
        node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", int(positions.sum()))


def _split(node: ir.Node, cut: _Cut) -> None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return
    axis = node.attributes.get_int("axis", 0) % len(value.shape)
    if cut.positions(value, axis) is None:
        return
    sizes = []
    for output in node.outputs:
        positions = cut.positions(output, axis)
        size = output.shape[axis] if output.shape is not None else 0
        sizes.append(int(positions.sum()) if positions is not None else int(size))  # type: ignore[arg-type]  # static
    node.attributes.pop("num_outputs", None)
    if _version(node) < 13:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
        return
    set_constant(node, 1, np.array(sizes, np.int64))


def _version(node: ir.Node) -> int:
    if node.graph is None:
        raise ValueError(f"'{node.name}' is in no graph")
    versions = node.graph.opset_imports
    return max((versions[domain] for domain in STANDARD_DOMAINS if domain in versions), default=13)


def _slice(node: ir.Node, cut: _Cut) -> None:
    value = node.inputs[0]
    found = slices(node, len(value.shape)) if value is not None and value.shape is not None else None
    if value is None or found is None:
        return
    changed = False
    for axis, (start, end, step) in found.items():
        positions = cut.positions(value, axis)
        if positions is not None:
            begin, stop, _ = slice(start, end, step).indices(len(positions))
            found[axis] = (int(positions[:begin].sum()), int(positions[: max(begin, stop)].sum()), step)
            changed = True
    if not changed:
        return
    starts, ends = [s or 0 for s, _, _ in found.values()], [e or 0 for _, e, _ in found.values()]
    if "starts" in node.attributes:
        node.attributes["starts"] = ir.AttrInt64s("starts", starts)
        node.attributes["ends"] = ir.AttrInt64s("ends", ends)
    else:
        set_constant(node, 1, np.array(starts, np.int64))
        set_constant(node, 2, np.array(ends, np.int64))


def _pad(node: ir.Node, cut: _Cut) -> None:
    value, result = node.inputs[0], node.outputs[0]
    found = pads(node, len(value.shape)) if value is not None and value.shape is not None else None
    if found is None:
        return
    changed = False
    for axis, (before, after) in found.items():
        positions = cut.positions(result, axis)
        if positions is not None and (before or after):
            found[axis] = (int(positions[:before].sum()), int(positions[len(positions) - after :].sum()))
            changed = True
    if not changed:
        return
    numbers = [*(before for before, _ in found.values()), *(after for _, after in found.values())]
    if "pads" in node.attributes:
        node.attributes["pads"] = ir.AttrInt64s("pads", numbers)
    else:
        set_constant(node, 1, np.array(numbers, np.int64))


def _reshape(node: ir.Node, cut: _Cut) -> None:
    sizes = _left(node.outputs[0], cut)
    if sizes is not None:
        set_constant(node, 1, np.array([-1 if size is None else size for size in sizes], np.int64))


def _expand(node: ir.Node, cut: _Cut) -> None:
    sizes, target = _left(node.outputs[0], cut), constant(node.inputs[1])
    if sizes is None or target is None:
        return
    numbers = [int(number) for number in target]
    for axis, size in enumerate(sizes):
        place = axis - (len(sizes) - len(numbers))
        if place >= 0 and numbers[place] != 1 and cut.positions(node.outputs[0], axis) is not None and size is not None:
            numbers[place] = size
    set_constant(node, 1, np.array(numbers, np.int64))


def _gather(node: ir.Node, cut: _Cut) -> None:
    value, indices = node.inputs[0], constant(node.inputs[1])
    if value is None or value.shape is None or indices is None:
        return
    axis = node.attributes.get_int("axis", 0) % len(value.shape)
    positions = cut.positions(value, axis)
    if positions is None:
        return
    place = np.cumsum(positions) - 1
    chosen = indices % len(positions)
    kept = place[chosen[positions[chosen]]] if indices.ndim else place[chosen]
    set_constant(node, 1, kept.astype(indices.dtype))


def _resize(node: ir.Node, cut: _Cut) -> None:
    sizes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    left = _left(node.outputs[0], cut)
    if sizes is not None and left is not None:
        numbers = [int(old) if new is None else new for old, new in zip(sizes, left, strict=True)]
        set_constant(node, 3, np.array(numbers, np.int64))


_ADJUST: Mapping[str, Callable[[ir.Node, _Cut], None]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "GroupNormalization": _group_norm,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrence),
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Reshape": _reshape,
    "Expand": _expand,
    "Gather": _gather,
    "Resize": _resize,
}
