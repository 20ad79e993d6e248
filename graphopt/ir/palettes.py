"""Weights as palettes: a codebook of few numbers, and for each element of the weight the index of its number.

In ONNX a palette is Gather(codebook[entries], Cast(indices) to int32), the indices in the shape of the weight; with a
codebook for each of several groups of slices of the weight, which lie one behind the other, it is
Reshape(GatherElements(codebooks[groups, entries], Cast(indices[groups, …]) to int32, axis=1), shape). Indices are uint8
or uint4, so the model's file holds 8 or 4 bits for each element. Whoever folds constants has to leave the Cast alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant, is_standard

Array = np.ndarray[Any, Any]

_INDICES = (ir.DataType.UINT8, ir.DataType.UINT4)


@dataclass(frozen=True)
class Palette:
    """A weight that is stored as a palette.

    codebook: float[entries], or float[groups, entries].
    indices: uint8 in the shape of the weight, or [groups, elements].
    shape: of the weight.
    nodes: those that compute the weight, in order.
    """

    codebook: Array
    indices: Array
    shape: tuple[int, ...]
    nodes: tuple[ir.Node, ...]

    def array(self) -> Array:
        """The weight's numbers."""
        if self.codebook.ndim == 1:
            return self.codebook[self.indices]
        return np.take_along_axis(self.codebook, self.indices.astype(np.int32), axis=1).reshape(self.shape)


def palette_of(value: ir.Value | None) -> Palette | None:
    """The palette that `value` is computed from, if it is."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if is_standard(node, "Gather"):
        return _look_up(node)
    target = constant(node.inputs[1]) if is_standard(node, "Reshape") else None
    behind = node.inputs[0].producer() if target is not None and node.inputs[0] is not None else None
    found = None if behind is None or not is_standard(behind, "GatherElements") else _look_up(behind)
    shape = () if target is None else tuple(int(size) for size in target)
    if found is None or min(shape, default=1) < 1:
        return None
    return Palette(found.codebook, found.indices, shape, (*found.nodes, node))


def makes_palette_indices(node: ir.Node) -> bool:
    """Whether `node` is the Cast in front of a palette: folding it would make the indices four times as large."""
    if not is_standard(node, "Cast") or node.inputs[0] is None or node.inputs[0].dtype not in _INDICES:
        return False
    readers = node.outputs[0].consumers()
    return bool(readers) and all(_look_up(reader) is not None for reader in readers)


def _look_up(node: ir.Node) -> Palette | None:
    """The palette whose Gather or GatherElements `node` is; the shape is that of its result."""
    if not is_standard(node, "Gather", "GatherElements") or len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    rank = 2 if node.op_type == "GatherElements" else 1
    cast = node.inputs[1].producer()
    if cast is None or not is_standard(cast, "Cast") or node.attributes.get_int("axis", 0) != rank - 1:
        return None
    codebook, indices = constant(node.inputs[0]), constant(cast.inputs[0])
    if codebook is None or indices is None or codebook.ndim != rank:
        return None
    if not ir.DataType.from_numpy(codebook.dtype).is_floating_point():
        return None
    if ir.DataType.from_numpy(indices.dtype) not in _INDICES:
        return None
    return Palette(codebook, indices.astype(np.uint8), indices.shape, (cast, node))
