"""A layer with a constant weight as a product of matrices, y = W x for each group, and columns x of its input.

W is [groups, outputs, features]; a column holds what one place of the output reads. Of a Conv that is a patch: features
are ordered as in its weight, [channels of the group, *kernel].
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.passes.cleanup.fold_pad import same_pads

Array = np.ndarray[Any, Any]

# Of these the product with the input is meant: W, [directions, gates * hidden, input].
RECURRENT = ("LSTM", "GRU", "RNN")


def why_not(node: ir.Node, weight_index: int, weight: Array) -> str:
    """Why `node` is not such a product; empty if it is.

    Args:
        weight_index: of the input that holds the constant.
    """
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return f"the columns of {node.op_type} are not sampled"
    if weight_index != 1:
        return "its constant operand comes first"
    return "" if node.op_type == "Conv" or weight.ndim == 2 else "its weight is a stack of matrices"


def to_matrix(node: ir.Node, weight: Array) -> Array:
    """The weight as [groups, outputs of a group, features]."""
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    if node.op_type in RECURRENT:
        return weight.reshape(1, -1, weight.shape[-1])
    return (weight if _is_transposed(node) else weight.T)[None]


def from_matrix(node: ir.Node, matrix: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `to_matrix`; `shape` is that of the weight."""
    if node.op_type in ("Conv", *RECURRENT):
        return np.ascontiguousarray(matrix.reshape(shape))  # a view in another order cannot be handed to a runtime
    return np.ascontiguousarray(matrix[0] if _is_transposed(node) else matrix[0].T)


def _is_transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0


def places_of(node: ir.Node, weight: Array, given: Array) -> int:
    """How many columns the input `given` has."""
    if node.op_type == "Conv":
        return int(given.shape[0] * math.prod(_Window(node, weight, given).counts))
    return int(given.shape[1] if node.attributes.get_int("transA", 0) else math.prod(given.shape[:-1]))


def columns(node: ir.Node, weight: Array, given: Array, places: Array) -> Array:
    """The columns at `places`, indices below `places_of`, as [groups, places, features]."""
    if node.op_type == "Conv":
        return _patches(node, weight, given, places)
    rows = given.T if node.attributes.get_int("transA", 0) else given.reshape(-1, given.shape[-1])
    return rows[places][None]


class _Window:
    """Where a Conv reads: numbers by spatial axis."""

    def __init__(self, node: ir.Node, weight: Array, given: Array) -> None:
        self.kernel = weight.shape[2:]
        ones = (1,) * len(self.kernel)
        self.strides = node.attributes.get_ints("strides", ones)
        self.dilations = node.attributes.get_ints("dilations", ones)
        sizes = given.shape[2:]
        kind = node.attributes.get_string("auto_pad", "NOTSET")
        if kind in ("SAME_UPPER", "SAME_LOWER"):
            pads = same_pads(kind, sizes, self.kernel, self.strides, self.dilations)
        else:
            zeros = (0,) * (2 * len(ones))
            pads = list(zeros if kind == "VALID" else node.attributes.get_ints("pads", zeros))
        self.pads = list(zip(pads[: len(ones)], pads[len(ones) :], strict=True))
        self.counts = tuple(
            (size + sum(pad) - dilation * (window - 1) - 1) // stride + 1
            for size, pad, dilation, window, stride in zip(
                sizes, self.pads, self.dilations, self.kernel, self.strides, strict=True
            )
        )


def _patches(node: ir.Node, weight: Array, given: Array, places: Array) -> Array:
    window = _Window(node, weight, given)
    padded = np.pad(given, [(0, 0), (0, 0), *window.pads])
    batch, *spots = np.unravel_index(places, (given.shape[0], *window.counts))
    found = np.empty((len(places), given.shape[1], math.prod(window.kernel)), given.dtype)
    for number, offset in enumerate(np.ndindex(*window.kernel)):
        at = [
            spot * stride + step * dilation
            for spot, stride, step, dilation in zip(spots, window.strides, offset, window.dilations, strict=True)
        ]
        found[:, :, number] = padded[(batch, slice(None), *at)]
    groups = node.attributes.get_int("group", 1)
    return np.ascontiguousarray(found.reshape(len(places), groups, -1).swapaxes(0, 1))
