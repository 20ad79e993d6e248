"""How many multiply-accumulates are left when units go, without building the graph.

The MACs of a layer are a product of sizes: each axis that loses positions scales them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels import Channels, Labels
from graphopt.analysis.macs import UnknownSizeError, macs
from graphopt.ir.reading import constant, is_standard

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Product:
    """`macs` of a node, and the units of each axis that they grow with."""

    macs: float
    axes: tuple[Labels, ...]


class Budget:
    """The MACs of a graph's main part as a function of the units that stay.

    Args:
        graph: with static shapes.
        found: its channels.
    """

    def __init__(self, graph: ir.Graph, found: Channels) -> None:
        self._products = [product for node in graph for product in _products(node, found)]
        self._count = found.count
        self.total = self.left(np.ones(found.count, bool))

    def left(self, kept: Array) -> float:
        """MACs when the units of `kept`, bool [count], stay."""
        return float(sum(p.macs * np.prod([kept[units].mean() for units in p.axes]) for p in self._products))

    def saved(self, kept: Array, units: Array) -> float:
        """MACs that the removal of `units` saves beside what is gone already."""
        without = kept.copy()
        without[units] = False
        touched = [p for p in self._products if any(np.isin(axis, units).any() for axis in p.axes)]
        before = sum(p.macs * np.prod([kept[axis].mean() for axis in p.axes]) for p in touched)
        return float(before - sum(p.macs * np.prod([without[axis].mean() for axis in p.axes]) for p in touched))


def _products(node: ir.Node, found: Channels) -> Iterator[_Product]:
    if not is_standard(node):
        return
    try:
        count = macs(node)
    except UnknownSizeError:
        return
    if not count:
        return
    if node.op_type in ("LSTM", "GRU", "RNN"):
        weights = [node.inputs[1], node.inputs[2]]
        sizes = [array.size if (array := constant(weight)) is not None else 0 for weight in weights]
        for weight, size in zip(weights, sizes, strict=True):
            yield _Product(count * size / max(sum(sizes), 1), _axes(weight, (1, 2), found))
    elif node.op_type in ("Conv", "ConvTranspose"):
        yield _Product(count, _axes(node.inputs[1], (0, 1), found))
    else:
        yield _Product(count, _of_matrices(node, found))


def _axes(value: ir.Value | None, axes: tuple[int, ...], found: Channels) -> tuple[Labels, ...]:
    return tuple(units for axis in axes if (units := found.units_of(value, axis)) is not None)


def _of_matrices(node: ir.Node, found: Channels) -> tuple[Labels, ...]:
    """Axes of the result, and the one that is summed over."""
    output = node.outputs[0]
    rank = len(output.shape) if output.shape is not None else 0
    first = node.inputs[0]
    size = len(first.shape) if first is not None and first.shape is not None else 1
    summed = 0 if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0 else size - 1
    inner = found.units_of(first, summed)
    if inner is None:
        second = node.inputs[1]
        depth = len(second.shape) if second is not None and second.shape is not None else 2
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
        inner = found.units_of(second, 1 if transposed else max(depth - 2, 0))
    return (*_axes(output, tuple(range(rank)), found), *(() if inner is None else (inner,)))
