"""Merge chains of transposes into one, and drop those that undo each other.

    Transpose_q(Transpose_p(x)) = Transpose_r(x),  r[i] = p[q[i]]

onnxscript's TransposeTranspose wants both permutations written out and the first one used once; a missing
permutation means the axes reversed, and a first transpose with other uses can stay for those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.reading import is_standard
from graphopt.passes.cleanup.rewiring import remove_if_unused, replace
from graphopt.pipeline.base import Pass, PassContext, PassResult

Permutation = tuple[int, ...]


@dataclass(frozen=True)
class MergeTransposes(Pass):
    """Merge Transpose of Transpose; drop pairs that cancel."""

    name: ClassVar[str] = "merge-transposes"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        merged = sum(merge_transposes(graph) for graph in model.graphs())
        return PassResult(bool(merged), {"merged": merged})


def permutation_of(node: ir.Node) -> Permutation | None:
    """The permutation of a Transpose; None for other nodes, and where the rank that a missing one needs is unknown."""
    if not is_standard(node, "Transpose"):
        return None
    if "perm" in node.attributes:
        return None if node.attributes["perm"].is_ref() else tuple(node.attributes["perm"].as_ints())
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return None if shape is None else tuple(reversed(range(len(shape))))


def inverse(permutation: Sequence[int]) -> Permutation:
    """The permutation that undoes `permutation`."""
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))


def compose(first: Sequence[int], second: Sequence[int]) -> Permutation:
    """The permutation that does `first` and then `second`."""
    return tuple(first[axis] for axis in second)


def merge_transposes(graph: ir.Graph) -> int:
    """Merge in one graph, from the first node to the last, so that longer chains collapse too; how many were merged."""
    merged = 0
    for node in graph:
        second = permutation_of(node)
        first_node = node.inputs[0].producer() if second is not None and node.inputs[0] is not None else None
        first = permutation_of(first_node) if first_node is not None else None
        if second is None or first is None or first_node is None or len(first) != len(second):
            continue
        source = first_node.inputs[0]
        assert source is not None
        both = compose(first, second)
        if both == tuple(range(len(both))):
            if not replace(node.outputs[0], source):
                continue
        else:
            node.replace_input_with(0, source)
            node.attributes["perm"] = ir.AttrInt64s("perm", both)
        merged += 1
        remove_if_unused(node)
        remove_if_unused(first_node)
    return merged
