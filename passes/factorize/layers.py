"""Layers that can become two: products with one constant matrix, and convolutions as such products.

A Conv of one group, whatever its kernel, is y = W x with x a patch. U V then is a convolution with the same kernel to
r channels and a 1×1 convolution from these (X. Zhang and others, Accelerating very deep convolutional networks, 2016).

An LSTM, GRU or RNN multiplies its whole input by W before the loop over time: that product is the layer, of all gates
and directions at once. R is in the loop, where a second product would wait for the first: it stays. An embedding, a
Gather of rows of a table, is W times one-hot columns: a table of r columns, and a product. That saves bytes, not time.

Nodes that read one weight are one layer, and get the same factors: W = A B serves a Gather or a product with W as A and
then B, and a Gemm with Wᵀ as Bᵀ and then Aᵀ. (A Transpose of a constant is a weight of its own, after clean-up.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant, is_standard, static_shape
from graphopt.passes.cleanup.constants import layer_name
from graphopt.passes.factorize.costs import Product
from graphopt.passes.prune.readers import MOST_FEATURES, Reader
from graphopt.passes.quantize.patches import RECURRENT, to_matrix, why_not
from graphopt.pipeline.base import Declined

Array = np.ndarray[Any, Any]

MARK = "graphopt.factorize"  # metadata of a node: which factor it is
_LEAST = 2  # outputs and features of a matrix that has anything to give


@dataclass(frozen=True)
class Layer:
    """A node with a constant matrix.

    matrix: W, [outputs, features], float64. places: how many columns it multiplies in one run.
    line: places in one line of a picture, where a window covers several; else 0.
    winograd: whether it is a window that Winograd's algorithm serves.
    biased: whether a constant takes up a mean, or may.
    lookup: whether it is an embedding.
    sharing: where several nodes read the weight, each of them by itself, this one first, and lookups last.
    """

    node: ir.Node
    matrix: Array
    places: int
    line: int
    winograd: bool
    biased: bool
    lookup: bool = False
    sharing: tuple[Layer, ...] = ()

    @property
    def uses(self) -> tuple[Layer, ...]:
        """Each node by itself."""
        return self.sharing or (self,)

    @property
    def weight_index(self) -> int:
        """Of the node's input that holds W."""
        return 0 if self.lookup else 1

    @property
    def name(self) -> str:
        """As the report calls it."""
        return layer_name(self.node)

    @property
    def full_rank(self) -> int:
        """The largest rank that W can have."""
        outputs, features = self.matrix.shape
        return int(min(outputs, features))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run, of all nodes."""
        return int(self.matrix.size) * sum(each.places for each in self.uses if not each.lookup)

    @property
    def both_ways(self) -> bool:
        """Whether some nodes multiply by the weight, and others by its transpose."""
        return len({is_turned(each.node) for each in self.uses if not each.lookup}) > 1

    @property
    def product(self) -> Product:
        """What the kernels see."""
        outputs, features = self.matrix.shape
        return Product(outputs, features, self.places, self.line, self.winograd, self.lookup)

    def reader(self) -> Reader | None:
        """What sums up the second moments of its input; None where there are too many features, or all rows count."""
        outputs, features = self.matrix.shape
        if self.lookup or features > MOST_FEATURES:
            return None
        empty = np.zeros((1, features, features))
        return Reader(self.node, self.matrix.reshape(1, outputs, features), np.zeros((1, features), int), empty)


def layers(graph: ir.Graph, exclude: tuple[str, ...]) -> tuple[list[Layer], list[Declined]]:
    """The layers of the main graph that have a constant matrix, and those of them that must stay, with reasons."""
    found: dict[ir.Node, Layer] = {}
    declined: dict[ir.Node, str] = {}
    shared: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if not is_standard(node, "Conv", "Gemm", "MatMul", "Gather", *RECURRENT):
            continue
        weight, index = _weight(node)
        value = node.inputs[index]
        if weight is None or value is None:
            continue
        if reason := _why_not(node, weight, index, exclude):
            declined[node] = reason
            continue
        found[node] = _layer(node, weight)
        if len(value.uses()) > 1:
            shared.setdefault(value, []).append(node)
    for value, nodes in shared.items():
        if reason := _conflict(value, nodes):
            declined |= dict.fromkeys(nodes, reason)
        else:
            parts = tuple(sorted((found.pop(node) for node in nodes), key=lambda part: part.lookup))
            found[parts[0].node] = replace(parts[0], sharing=parts)
    reasons = [Declined(layer_name(node), reason) for node, reason in declined.items()]
    return [layer for node, layer in found.items() if node not in declined], reasons


def _conflict(value: ir.Value, nodes: list[ir.Node]) -> str:
    """Why the nodes that read `value` cannot have the same factors; `nodes` may have some."""
    others = [use.node for use in value.uses() if use.node not in nodes]
    if others or value.is_graph_output():
        what = f"'{layer_name(others[0])}', which stays" if others else "the model's outputs"
        return f"its weight is shared with {what}"
    other = next((node for node in nodes if _kind(node) != _kind(nodes[0])), None)
    if other is None:
        return ""
    return (
        f"its weight is shared by '{layer_name(nodes[0])}' and '{layer_name(other)}', which read it in different ways"
    )


def is_turned(node: ir.Node) -> bool:
    """Whether a node multiplies columns by its weight as it is stored; the others of matrices by its transpose."""
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0


def _kind(node: ir.Node) -> tuple[str, bool]:
    """Nodes of the same kind have the same matrix for the same weight, or its transpose, and split alike."""
    if node.op_type in ("Gather", "Gemm", "MatMul"):
        return "matrix", False
    return node.op_type, node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"


def _weight(node: ir.Node) -> tuple[Array | None, int]:
    if node.op_type == "Gather":
        table = constant(node.inputs[0])
        is_table = (
            table is not None and table.ndim == 2 and table.dtype.kind == "f" and constant(node.inputs[1]) is None
        )
        return (table, 0) if is_table and node.attributes.get_int("axis", 0) == 0 else (None, 0)
    for index in (1, 0):
        array = constant(node.inputs[index]) if len(node.inputs) > index else None
        if array is not None:
            return array, index
    return None, 1


def _why_not(node: ir.Node, weight: Array, index: int, exclude: tuple[str, ...]) -> str:
    if any(fnmatchcase(str(node.name), pattern) for pattern in exclude):
        return "excluded by the options"
    if MARK in node.metadata_props:
        return "it is a factor already"
    if node.op_type not in ("Gather", *RECURRENT) and (reason := why_not(node, index, weight)):
        return reason
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}, not float32"
    if not np.isfinite(weight).all():
        return "its weight is not finite"
    if node.op_type == "Conv" and node.attributes.get_int("group", 1) != 1:
        return "its channels are in groups, whose matrices are small"
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0:
        return "its first operand is transposed"
    if any(static_shape(each) is None for each in (node.inputs[0], node.inputs[1], _result(node))):
        return "its shape is not known"
    if min(_matrix(node, weight).shape) < _LEAST:
        return "its matrix has rank 1"
    return ""


def _result(node: ir.Node) -> ir.Value | None:
    """An output that is there; what comes first may be left out."""
    return next((value for value in node.outputs if value.name), None)


def _matrix(node: ir.Node, weight: Array) -> Array:
    return weight.T if node.op_type == "Gather" else to_matrix(node, weight)[0]


def _layer(node: ir.Node, weight: Array) -> Layer:
    matrix = _matrix(node, weight).astype(np.float64)
    lookup = node.op_type == "Gather"
    if lookup or node.op_type in RECURRENT:
        read = shape_of(node.inputs[1] if lookup else node.inputs[0])
        places = prod(read if lookup else read[:-1])
        return Layer(node, matrix, places, 0, winograd=False, biased=False, lookup=lookup)
    shape = shape_of(node.outputs[0])
    line = shape[-1] if node.op_type == "Conv" and prod(weight.shape[2:]) > 1 else 0
    has_bias = len(node.inputs) > 2 and constant(node.inputs[2]) is not None
    biased = node.op_type == "Conv" or (node.op_type == "Gemm" and has_bias)
    return Layer(node, matrix, prod(shape) // matrix.shape[0], line, _is_winograd(node, weight), biased)


def _is_winograd(node: ir.Node, weight: Array) -> bool:
    ones = (1, 1)
    steps = [tuple(node.attributes.get_ints(name, ones)) for name in ("strides", "dilations")]
    return node.op_type == "Conv" and weight.shape[2:] == (3, 3) and steps == [ones, ones]


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """Of a value that a layer reads or writes."""
    found = static_shape(value) if value is not None else None
    if found is None:
        raise ValueError("a layer of unknown shape was taken")  # `layers` declines those
    return found
