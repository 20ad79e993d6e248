"""Merge concatenations of concatenations, and drop what splits a tensor only to join it again.

Concat(Concat(a, b), c)      =  Concat(a, b, c)          along one axis
Concat(Split(x))             =  x                        all parts, in order, along one axis
Concat(x[0:i], x[i:n])       =  x                        likewise with slices
Concat(a, empty, b)          =  Concat(a, b)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.reading import is_standard
from graphopt.passes.cleanup.merge_slices import ranges_of
from graphopt.passes.cleanup.rewiring import remove_if_unused, replace
from graphopt.pipeline.base import Pass, PassContext, PassResult


@dataclass(frozen=True)
class MergeConcats(Pass):
    """Merge Concat of Concat; drop a Concat of all parts of one tensor."""

    name: ClassVar[str] = "merge-concats"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        merged = rejoined = 0
        for graph in model.graphs():
            for node in graph:
                if not is_standard(node, "Concat") or node.outputs[0].shape is None:
                    continue
                axis = _axis(node)
                merged += _flatten(node, axis)
                producers = [value.producer() for value in node.inputs if value is not None]
                whole = _whole(node.inputs, axis)
                if whole is not None and replace(node.outputs[0], whole):
                    rejoined += 1
                    remove_if_unused(node)
                    for producer in producers:
                        if producer is not None:
                            remove_if_unused(producer)
        return PassResult(bool(merged or rejoined), {"merged": merged, "rejoined": rejoined})


def _axis(node: ir.Node) -> int:
    shape = node.outputs[0].shape
    assert shape is not None
    return node.attributes.get_int("axis", 0) % len(shape)


def _flatten(node: ir.Node, axis: int) -> int:
    """Take over the inputs of concatenations that only `node` uses, and drop empty inputs; how many went."""
    parts: list[ir.Value | None] = []
    inner: list[ir.Node] = []
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if (
            value is not None
            and producer is not None
            and is_standard(producer, "Concat")
            and len(value.uses()) == 1
            and not value.is_graph_output()
            and value.shape is not None
            and _axis(producer) == axis
        ):
            parts.extend(producer.inputs)
            inner.append(producer)
        else:
            parts.append(value)
    full = [part for part in parts if not _is_empty(part, axis)] or parts[:1]
    dropped = len(parts) - len(full)
    if inner or dropped:
        node.resize_inputs(len(full))
        for index, part in enumerate(full):
            node.replace_input_with(index, part)
        for producer in inner:
            remove_if_unused(producer)
    return len(inner) + dropped


def _is_empty(value: ir.Value | None, axis: int) -> bool:
    return value is not None and value.shape is not None and value.shape[axis] == 0


def _whole(parts: Sequence[ir.Value | None], axis: int) -> ir.Value | None:
    """The tensor of which `parts` are all the pieces, in order along `axis`."""
    first = parts[0].producer() if parts and parts[0] is not None else None
    if first is None or first.inputs[0] is None or first.inputs[0].shape is None:
        return None
    data = first.inputs[0]
    assert data.shape is not None
    if is_standard(first, "Split"):
        same_axis = first.attributes.get_int("axis", 0) % len(data.shape) == axis
        return data if same_axis and list(parts) == list(first.outputs) else None
    end = 0
    for part in parts:
        producer = part.producer() if part is not None else None
        taken = ranges_of(producer) if producer is not None and producer.inputs[0] is data else None
        if taken is None or set(taken) != {axis} or taken[axis].step != 1 or taken[axis].start != end:
            return None
        end = taken[axis].stop
    return data if end == data.shape[axis] else None
