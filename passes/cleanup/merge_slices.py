"""Merge slices of slices, and take slices of a concatenation from the parts that they come from.

    Slice_b(Slice_a(x))            =  Slice_{a then b}(x)     axis by axis: a range of a range is a range
    Slice(Concat(…, part, …))      =  part, or a Slice of it, where it lies within that one part

The extents of the sliced axes must be known. A slice that other operators use too is left, because merging would
then save nothing. Version 10 moved the parameters from attributes to inputs; either form is read and kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import has_parameter, integers, is_standard, opset_of
from graphopt.passes.cleanup.rewiring import add_initializer, remove_if_unused, replace
from graphopt.pipeline.base import Pass, PassContext, PassResult

Ranges = Mapping[int, range]  # the indices that are taken, by axis


@dataclass(frozen=True)
class MergeSlices(Pass):
    """Merge Slice of Slice; take a Slice of a Concat from the part that holds it."""

    name: ClassVar[str] = "merge-slices"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        version = opset_of(model)
        slices = parts = 0
        for graph in model.graphs():
            for node in graph:
                while True:  # each turn moves the node's input one producer closer to the inputs of the graph
                    slices_now, parts_now = _merge_slice(graph, node, version), _take_part(graph, node, version)
                    slices, parts = slices + slices_now, parts + parts_now
                    if node.graph is None or not (slices_now or parts_now):
                        break
        return PassResult(bool(slices or parts), {"merged-slices": slices, "slices-of-parts": parts})


def ranges_of(node: ir.Node) -> Ranges | None:
    """What a Slice takes along each of its axes; None for other nodes, and where that is not known."""
    if not is_standard(node, "Slice") or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    shape = node.inputs[0].shape
    starts, ends = integers(node, "starts", 1), integers(node, "ends", 2)
    if starts is None or ends is None:
        return None
    axes = integers(node, "axes", 3) if has_parameter(node, "axes", 3) else tuple(range(len(starts)))
    steps = integers(node, "steps", 4) if has_parameter(node, "steps", 4) else (1,) * len(starts)
    if axes is None or steps is None:
        return None
    taken = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        extent = shape[axis]
        if not isinstance(extent, int):
            return None
        taken[axis % len(shape)] = range(extent)[start:end:step]
    return taken


def _merge_slice(graph: ir.Graph, node: ir.Node, version: int) -> bool:
    outer = ranges_of(node)
    first = node.inputs[0].producer() if outer is not None and node.inputs[0] is not None else None
    inner = ranges_of(first) if first is not None else None
    if outer is None or inner is None or first is None or first.inputs[0] is None or first.inputs[0].shape is None:
        return False
    if first.outputs[0].is_graph_output() or any(ranges_of(user) is None for user, _ in first.outputs[0].uses()):
        return False
    merged = dict(inner)
    for axis, taken in outer.items():
        merged[axis] = inner[axis][taken.start : _stop(taken) : taken.step] if axis in inner else taken
    if any(len(taken) == 0 for taken in merged.values()):
        return False
    _write(graph, node, first.inputs[0], merged, version)
    remove_if_unused(first)
    return True


def _take_part(graph: ir.Graph, node: ir.Node, version: int) -> bool:
    taken = ranges_of(node)
    joined = node.inputs[0].producer() if taken is not None and node.inputs[0] is not None else None
    if taken is None or joined is None or not is_standard(joined, "Concat") or joined.outputs[0].shape is None:
        return False
    axis = joined.attributes.get_int("axis", 0) % len(joined.outputs[0].shape)
    if axis not in taken or not len(taken[axis]):
        return False
    offset = 0
    for part in joined.inputs:
        extent = part.shape[axis] if part is not None and part.shape is not None else None
        if part is None or not isinstance(extent, int):
            return False
        low, high = min(taken[axis]), max(taken[axis])
        if offset <= low and high < offset + extent:
            within = range(taken[axis].start - offset, taken[axis].stop - offset, taken[axis].step)
            rest = {other: wanted for other, wanted in taken.items() if other != axis}
            if within == range(extent) and not rest:
                if not replace(node.outputs[0], part):
                    return False
                remove_if_unused(node)
            else:
                _write(graph, node, part, rest if within == range(extent) else {**rest, axis: within}, version)
            remove_if_unused(joined)
            return True
        offset += extent
    return False


def _stop(taken: range) -> int | None:
    """The end of a range as a slice takes it: nothing stands for before the first element."""
    return taken.stop if taken.stop >= 0 else None


def _write(graph: ir.Graph, node: ir.Node, data: ir.Value, taken: Ranges, version: int) -> None:
    """Make `node`, a Slice, take the ranges `taken` of `data`."""
    axes = sorted(taken)
    before_first = np.iinfo(np.int64).min
    values = {
        "starts": [taken[axis].start for axis in axes],
        "ends": [before_first if (stop := _stop(taken[axis])) is None else stop for axis in axes],
        "axes": axes,
        "steps": [taken[axis].step for axis in axes],
    }
    node.replace_input_with(0, data)
    if version < 10:
        for name in ("starts", "ends", "axes"):
            node.attributes[name] = ir.AttrInt64s(name, values[name])
        return
    if set(values["steps"]) == {1}:
        del values["steps"]
    node.resize_inputs(1)
    node.resize_inputs(1 + len(values))
    for index, numbers in enumerate(values.values(), start=1):
        name = f"{node.outputs[0].name}"
        node.replace_input_with(index, add_initializer(graph, name, np.array(numbers, np.int64)))
