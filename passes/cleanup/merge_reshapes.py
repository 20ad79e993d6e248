"""Merge chains of operators that only change the shape into one Reshape.

Reshape, Flatten, Squeeze and Unsqueeze keep the order of the elements. So do a Transpose that moves nothing but
axes of extent 1, a Gather of the one element of an axis, and a Sum, Mean, Max, Min or Prod over axes of extent 1.
Of such a chain only the last shape counts:

    Squeeze(Transpose(Reshape(x)))  =  Reshape(x, shape of the result)

and nothing is left where that is the shape of x. The operators of the second kind become a Reshape also where they
stand alone, because a Reshape copies nothing. The shape may have one unknown dimension, written -1.

onnxscript's ReshapeReshape and UnsqueezeUnsqueeze know one pair each, with the first one used once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import axes_of, constant, has_parameter, is_standard, same_shape
from graphopt.passes.cleanup.merge_transposes import permutation_of
from graphopt.passes.cleanup.rewiring import add_initializer, is_used, remove_if_unused, replace
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")


@dataclass(frozen=True)
class MergeReshapes(Pass):
    """Merge Reshape, Flatten, Squeeze, Unsqueeze and what amounts to them into one Reshape, or none."""

    name: ClassVar[str] = "merge-reshapes"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        merged = converted = 0
        declined = []
        for graph in model.graphs():
            for node in reversed(graph):  # the last of a chain takes all of it
                if not (_only_reshapes(node) and is_used(node)):
                    continue
                source, chain = _source(node)
                gone = same_shape(source, node.outputs[0]) and replace(node.outputs[0], source)
                merged += gone
                if not remove_if_unused(node) and (chain or node.op_type not in RESHAPES):
                    if _become_reshape(graph, node, source):
                        merged, converted = merged + (bool(chain) and not gone), converted + (not chain)
                    elif chain:
                        reason = "its chain of reshapes ends in more than one unknown dimension, or in an empty one"
                        declined.append(Declined(node.name or "", reason))
                for link in chain:
                    remove_if_unused(link)
        return PassResult(
            bool(merged or converted), {"merged": merged, "turned-into-reshape": converted}, tuple(declined)
        )


def _only_reshapes(node: ir.Node) -> bool:
    """Whether the output of `node` has the elements of its first input in the same order."""
    if not is_standard(node) or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type in RESHAPES:
        return True
    shape = shape_or_zeros(node.inputs[0])
    if shape is None:
        return False
    if (permutation := permutation_of(node)) is not None:
        moved = [axis for axis in permutation if shape[axis] != 1]
        return moved == sorted(moved)
    if node.op_type == "Gather" and shape:
        index = constant(node.inputs[1])
        return index is not None and index.ndim == 0 and shape[node.attributes.get_int("axis", 0)] == 1
    if node.op_type in REDUCTIONS and has_parameter(node, "axes", 1):
        axes = axes_of(node, len(shape))
        return bool(axes) and all(shape[axis] == 1 for axis in axes or ())
    return False


def shape_or_zeros(value: ir.Value) -> tuple[int, ...] | None:
    """The shape with 0 for every dimension that is not a number; None if not even the rank is known."""
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else 0 for dim in value.shape.dims)


def _source(node: ir.Node) -> tuple[ir.Value, list[ir.Node]]:
    """Where the chain that ends in `node` begins, and its earlier nodes, the last one first."""
    value = node.inputs[0]
    chain: list[ir.Node] = []
    assert value is not None
    while (producer := value.producer()) is not None and _only_reshapes(producer):
        chain.append(producer)
        earlier = producer.inputs[0]
        assert earlier is not None
        value = earlier
    return value, chain


def target_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape of `value` as Reshape takes it, -1 for one unknown dimension; None if it cannot be written."""
    if value.shape is None:
        return None
    target = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape.dims)
    return None if target.count(-1) > 1 or 0 in target else target


def _become_reshape(graph: ir.Graph, node: ir.Node, source: ir.Value) -> bool:
    """Make `node` a Reshape of `source` to the shape that its output has; False if that cannot be written."""
    given = constant(node.inputs[1]) if node.op_type == "Reshape" else None
    if given is not None and (given.size == 0 or given.all()):  # no 0, which would copy from the input's shape
        node.replace_input_with(0, source)
        return True
    target = target_shape(node.outputs[0])
    if target is None:
        return False
    shape = add_initializer(graph, f"{node.outputs[0].name}", np.array(target, np.int64))
    node.op_type = "Reshape"
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(0, source)
    node.replace_input_with(1, shape)
    return True
