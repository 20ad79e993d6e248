"""Nodes of a probe that reduce a value to a number for each channel, so that a run hands out vectors, not tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import opset_of
from graphopt.passes.cleanup.rewiring import add_initializer, fresh_name

Array = np.ndarray[Any, Any]

_AXES_INPUT_OPSET = 18  # the first whose ReduceMean takes its axes as an input


@dataclass(frozen=True)
class Spread:
    """Of a value over samples and places, float64 [channels] each."""

    mean: Array
    square: Array  # the mean of the square

    @property
    def deviation(self) -> Array:
        """The standard deviation."""
        return np.asarray(np.sqrt(np.maximum(self.square - self.mean**2, 0)))


def channel_axis(node: ir.Node) -> int:
    """The axis of the channels in what a product, or the Add of its bias, makes; from the end where it counts so."""
    return 1 if node.op_type in ("Conv", "ConvTranspose", "Gemm") else -1


def channel_mean(probe: ir.Model, value: ir.Value, axis: int, name: str) -> ir.Node:
    """A node that makes `name`, the mean of `value` over all axes but `axis`, as float32 [channels].

    It is not in the graph yet; a constant of its own may be. A value without a known rank counts as a matrix.
    """
    rank = len(value.shape) if value.shape is not None else 2
    axes = [each for each in range(rank) if each != axis % rank]
    if opset_of(probe) >= _AXES_INPUT_OPSET:
        given = add_initializer(probe.graph, f"{name}/axes", np.array(axes, np.int64))
        node = ir.node("ReduceMean", [value, given], attributes={"keepdims": 0})
    else:
        node = ir.node("ReduceMean", [value], attributes={"axes": axes, "keepdims": 0})
    node.name = node.outputs[0].name = name
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["C"])
    return node


def measure(probe: ir.Model, value: ir.Value, axis: int) -> tuple[str, str]:
    """Add nodes to `probe` behind `value`, which a node makes; the names of its mean and mean square, by channel."""
    producer = value.producer()
    if producer is None:
        raise ValueError(f"'{value.name}' is not made by a node")
    squared = ir.node("Mul", [value, value], name=fresh_name(probe.graph, f"{value.name}/squared"))
    squared.outputs[0].name = squared.name
    squared.outputs[0].type, squared.outputs[0].shape = value.type, value.shape
    names = fresh_name(probe.graph, f"{value.name}/mean"), fresh_name(probe.graph, f"{value.name}/mean_square")
    means = [channel_mean(probe, of, axis, name) for of, name in zip((value, squared.outputs[0]), names, strict=True)]
    probe.graph.insert_after(producer, [squared, *means])
    return names
