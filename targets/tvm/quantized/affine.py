"""Chains of gains and shifts by channel as one integer kernel: normalization, scaling, offsets, PRelu.

BatchNormalization, and Add, Sub, Mul and Div by constants that vary along one axis, map each channel by a·x + b. A
chain of them is one such map, which a PRelu in front bends at x = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import is_standard
from graphopt.targets.tvm.kernels.integer_affine import IntegerAffine
from graphopt.targets.tvm.quantized.cluster import Cluster
from graphopt.targets.tvm.quantized.editor import Editor, shape_of
from graphopt.targets.tvm.quantized.emission import emit_kernel
from graphopt.targets.tvm.quantized.parameters import INT8, UINT8, Quantized, constant, dequantized, real_constant

LARGEST_SHIFT = 2.0**29  # below what a product may be beyond (`multiplied`)


@dataclass(frozen=True)
class Map:
    """a·x + b, and a·slope·x + b for x < 0 where there is a slope; float64 [] or [channels] along `axis`."""

    source: ir.Value
    a: np.ndarray
    b: np.ndarray
    slope: np.ndarray | None
    axis: int | None


def rewrite_affine(cluster: Cluster, editor: Editor) -> str | None:
    """A chain of maps by channel, from quantized integers to others: replaced, or why not."""
    found = _chain(cluster.made)
    if isinstance(found, str):
        return found
    x, chain = found
    shape = shape_of(x.integers)
    if shape != shape_of(cluster.result.integers) or chain.axis is None:
        return "it spreads its input, or its constants vary along no axis"
    last = chain.axis == 1 and len(shape) > 2
    channels = shape[chain.axis]
    step = np.float64(x.scale) / np.float64(cluster.result.scale)
    arrays = [chain.a * step, *([] if chain.slope is None else [chain.a * chain.slope * step])]
    arrays.append(chain.b / np.float64(cluster.result.scale))
    vectors = [np.broadcast_to(array, channels).astype(np.float32) for array in arrays]
    if not all(np.isfinite(vector).all() for vector in vectors) or not (np.abs(vectors[-1]) < LARGEST_SHIFT).all():
        return "its constants are too large for the scale of its result"
    kernel = IntegerAffine(
        math.prod(shape) // channels, channels, x.signed_zero_point, chain.slope is not None, cluster.bounds
    )
    source = editor.channels_last(x.integers) if last else editor.int8(x.integers)
    names = ("gains", "negative", "shifts") if kernel.bent else ("gains", "shifts")
    inputs = [editor.constant(v, f"{cluster.layer}.{name}") for name, v in zip(names, vectors, strict=True)]
    emitted = (shape[0], *shape[2:], channels) if last else shape
    made = emit_kernel(cluster, editor, kernel, [source, *inputs], emitted)
    editor.replace(cluster.result.integers, made, channels_last=last)
    return None


def _chain(value: ir.Value) -> tuple[Quantized, Map] | str:
    """The map from dequantized integers to `value`."""
    whole = Map(value, np.ones(()), np.zeros(()), None, None)
    while (x := dequantized(whole.source)) is None:
        node = whole.source.producer()
        if node is None or not is_standard(node):
            return "it reads no quantized integers"
        if whole.slope is not None:
            return "a PRelu in it does not read quantized integers"
        if whole.source is not value and (len(whole.source.uses()) > 1 or whole.source.is_graph_output()):
            return "a float result in it is used elsewhere"
        step = _map(node)
        if step is None:
            return f"{node.op_type} is no gain and shift by constants for each channel"
        axes = {axis for axis in (whole.axis, step.axis) if axis is not None}
        if len(axes) > 1:
            return "its constants vary along several axes"
        whole = Map(
            step.source, whole.a * step.a, whole.a * step.b + whole.b, step.slope, next(iter(axes)) if axes else None
        )
    if x.integers.dtype not in (INT8, UINT8) or not x.per_tensor or constant(x.integers) is not None:
        return "its input is not quantized to 8 bits"
    return x, whole


def _map(node: ir.Node) -> Map | None:
    """What one operator does to each channel; None for others."""
    one, none = np.ones(()), np.zeros(())
    if node.op_type == "BatchNormalization":
        arrays = [real_constant(value) for value in node.inputs[1:5]]
        known = [array.astype(np.float64) for array in arrays if array is not None]
        unused = all(not output.name or not output.uses() for output in node.outputs[1:])
        if len(known) < 4 or not unused or node.inputs[0] is None or node.attributes.get_int("training_mode", False):
            return None
        scale, bias, mean, variance = known
        a = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return Map(node.inputs[0], a, bias - mean * a, None, 1)
    if node.op_type not in ("Add", "Sub", "Mul", "Div", "PRelu") or len(node.inputs) != 2:
        return None
    first, second = (real_constant(value) for value in node.inputs)
    swapped = second is None
    given, source = (first, node.inputs[1]) if swapped else (second, node.inputs[0])
    if given is None or source is None or source.shape is None or (swapped and node.op_type in ("Div", "PRelu")):
        return None
    rank = len(source.shape)
    shape = [1] * (rank - given.ndim) + list(given.shape)
    axes = [axis for axis, extent in enumerate(shape) if extent > 1]
    if given.ndim > rank or len(axes) > 1 or (axes and axes[0] not in (1, rank - 1)):
        return None
    c, axis = given.astype(np.float64).reshape(-1 if axes else ()), axes[0] if axes else None
    if node.op_type == "PRelu":
        return Map(source, one, none, c, axis)
    if node.op_type == "Mul":
        return Map(source, c, none, None, axis)
    if node.op_type == "Div":
        return Map(source, 1 / c, none, None, axis) if (c != 0).all() else None
    if node.op_type == "Add":
        return Map(source, one, c, None, axis)
    return Map(source, -one, c, None, axis) if swapped else Map(source, one, -c, None, axis)
