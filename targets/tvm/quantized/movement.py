"""Operators that only move or choose elements: they do to integers what they do to what those stand for.

What they read and make has to have one scale and zero point; where it has not, a table converts it.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.targets.tvm.kernels.integer import describe
from graphopt.targets.tvm.kernels.integer_concat import IntegerConcat
from graphopt.targets.tvm.kernels.integer_elementwise import IntegerTable
from graphopt.targets.tvm.kernels.integer_max_pool import IntegerMaxPool, pool_window
from graphopt.targets.tvm.kernels.requantize import Range
from graphopt.targets.tvm.quantized.cluster import Cluster
from graphopt.targets.tvm.quantized.conversion import KERNEL
from graphopt.targets.tvm.quantized.editor import DOMAIN, Editor, shape_of
from graphopt.targets.tvm.quantized.emission import emit_kernel
from graphopt.targets.tvm.quantized.parameters import INT8, UINT8, Quantized, constant, dequantized
from graphopt.targets.tvm.quantized.products import window_of
from graphopt.targets.tvm.quantized.rearrangements import emit_transposition, transposition_up_to

MOVEMENTS = frozenset(
    {
        *("DepthToSpace", "Expand", "Flatten", "Gather", "Reshape", "Slice", "SpaceToDepth", "Squeeze"),
        *("Tile", "Transpose", "Unsqueeze"),
    }
)  # each moves its first input, and may read others that are no data


def rewrite_movement(cluster: Cluster, editor: Editor) -> str | None:
    """An operator of MOVEMENTS: on the integers, or why not."""
    node = cluster.node
    x = dequantized(node.inputs[0])
    if x is None or x.integers.dtype not in (INT8, UINT8) or not x.per_tensor:
        return "its input is not quantized to 8 bits"
    if len([output for output in node.outputs if output.name]) > 1:
        return "it has several outputs"
    shape = shape_of(cluster.result.integers)
    moved = _move(cluster, editor, [editor.int8(x.integers), *node.inputs[1:]], shape)
    last = _with_channels_last(cluster, editor, moved)
    made = _converted(cluster, editor, x, moved if last is None else last)
    editor.replace(cluster.result.integers, made, channels_last=last is not None)
    return None


def _with_channels_last(cluster: Cluster, editor: Editor, moved: ir.Value) -> ir.Value | None:
    """`moved` with channels last, where that is a transposition of what a kernel made, a channel shuffle above all."""
    shape = shape_of(moved)
    if len(shape) < 3:
        return None
    order = (0, *range(2, len(shape)), 1)
    found = transposition_up_to(moved, editor.opset, order)
    producer = None if found is None else found[0].producer()
    if found is None or producer is None or producer.domain != DOMAIN:
        return None
    source, of_matrices = found
    result, name = tuple(shape[axis] for axis in order), f"{cluster.layer}.channels_last"
    if 1 in of_matrices[1:]:  # nothing moves
        to = editor.constant(np.array(result, np.int64), f"{name}.shape")
        return editor.add("Reshape", [source, to], INT8, result, name=name, layer=cluster.layer)
    if shape_of(source) != result:
        return None
    return emit_transposition(editor, source, of_matrices, result, name)


def rewrite_max_pool(cluster: Cluster, editor: Editor) -> str | None:
    """MaxPool: by a kernel where the integers have their channels last, else as the movement that it is."""
    node, x = cluster.node, dequantized(cluster.node.inputs[0])
    kernel = tuple(node.attributes["kernel_shape"].as_ints())
    if x is None or len(kernel) > 2 or not editor.has_channels_last(x.integers) or len(node.outputs) > 1:
        return rewrite_movement(cluster, editor)
    batch, channels, *result = shape_of(cluster.result.integers)
    asked = window_of(node, shape_of(x.integers), kernel, -128)
    window = pool_window(asked, (1, *result)[-2:])  # type: ignore[arg-type]
    if window is None or not x.per_tensor:
        return rewrite_movement(cluster, editor)
    source, shape = editor.channels_last(x.integers), (batch, *result, channels)
    made = emit_kernel(cluster, editor, IntegerMaxPool(window), [source], shape)
    editor.replace(cluster.result.integers, _converted(cluster, editor, x, made), channels_last=True)
    return None


def rewrite_resize(cluster: Cluster, editor: Editor) -> str | None:
    """Resize to the nearest elements: of the integers, in the layout that those have."""
    node, x = cluster.node, dequantized(cluster.node.inputs[0])
    attributes = dict(node.attributes)
    crops = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    if node.attributes.get_string("mode", "nearest") != "nearest" or crops:
        return "it interpolates or extrapolates"
    if x is None or not editor.has_channels_last(x.integers) or len(shape_of(x.integers)) < 3:
        return rewrite_movement(cluster, editor)
    if x.integers.dtype not in (INT8, UINT8) or not x.per_tensor:
        return "its input is not quantized to 8 bits"
    batch, channels, *size = shape_of(cluster.result.integers)
    rank = len(size) + 2
    axes = attributes["axes"].as_ints() if "axes" in attributes else range(rank)
    attributes["axes"] = ir.AttrInt64s("axes", [_axis_with_channels_last(axis % rank, rank) for axis in axes])
    made = editor.add(
        "Resize",
        [editor.channels_last(x.integers), *node.inputs[1:]],
        INT8,
        [batch, *size, channels],
        name=f"{cluster.layer}.int8",
        attributes=attributes,
        layer=cluster.layer,
    )
    editor.replace(cluster.result.integers, _converted(cluster, editor, x, made), channels_last=True)
    return None


def rewrite_split(cluster: Cluster, editor: Editor) -> str | None:
    """One output of Split: a slice of the integers, in the layout that those have."""
    node, x = cluster.node, dequantized(cluster.node.inputs[0])
    if x is None or x.integers.dtype not in (INT8, UINT8) or not x.per_tensor:
        return "its input is not quantized to 8 bits"
    shape = list(shape_of(cluster.result.integers))
    axis = node.attributes.get_int("axis", 0) % len(shape)
    before = sum(shape_of(output)[axis] for output in node.outputs[: node.outputs.index(cluster.made)])
    bounds = {"begin": before, "end": before + shape[axis]}
    last = len(shape) > 2 and editor.has_channels_last(x.integers)
    if last:
        shape, axis = _channels_last(shape, axis)
    source = editor.channels_last(x.integers) if last else editor.int8(x.integers)
    cut = [
        editor.constant(np.array([n], np.int64), f"{cluster.layer}.{k}") for k, n in {**bounds, "axis": axis}.items()
    ]
    made = editor.add("Slice", [source, *cut], INT8, shape, name=f"{cluster.made.name}.int8", layer=cluster.layer)
    editor.replace(cluster.result.integers, _converted(cluster, editor, x, made), channels_last=last)
    return None


def rewrite_concat(cluster: Cluster, editor: Editor) -> str | None:
    """Concat of activations: of the integers, along the last axis where those have their channels last."""
    node = cluster.node
    found = [dequantized(value) for value in node.inputs]
    parts = [q for q in found if q is not None and q.integers.dtype in (INT8, UINT8) and q.per_tensor]
    if len(parts) < len(found) or all(constant(q.integers) is not None for q in parts):
        return "its inputs are not all quantized to 8 bits"
    shape = list(shape_of(cluster.result.integers))
    axis = node.attributes["axis"].as_int() % len(shape)
    last = len(shape) > 2 and any(editor.has_channels_last(q.integers) for q in parts)
    if last:
        shape, axis = _channels_last(shape, axis)
    sources = [editor.channels_last(q.integers) if last else editor.int8(q.integers) for q in parts]
    inputs = [_converted(cluster, editor, q, source) for q, source in zip(parts, sources, strict=True)]
    name, rows = f"{cluster.layer}.int8", math.prod(shape[:-1])
    if last and axis == len(shape) - 1 and rows > 1:  # one row needs no copy (`targets/tvm/parts.py`)
        joined = emit_kernel(
            cluster, editor, IntegerConcat(rows, tuple(shape_of(v)[-1] for v in inputs)), inputs, shape
        )
        editor.replace(cluster.result.integers, joined, channels_last=True)
        return None
    made = editor.add("Concat", inputs, INT8, shape, name=name, attributes={"axis": axis}, layer=cluster.layer)
    editor.replace(cluster.result.integers, made, channels_last=last)
    return None


def _channels_last(shape: list[int], axis: int) -> tuple[list[int], int]:
    """A shape and one of its axes, with axis 1 moved to the end."""
    return [shape[0], *shape[2:], shape[1]], _axis_with_channels_last(axis, len(shape))


def _axis_with_channels_last(axis: int, rank: int) -> int:
    return 0 if axis == 0 else (axis - 2) % (rank - 1) + 1


def _move(cluster: Cluster, editor: Editor, inputs: list[ir.Value | None], shape: tuple[int, ...]) -> ir.Value:
    node = cluster.node
    output = editor.add(node.op_type, inputs, INT8, shape, name=f"{cluster.layer}.int8", layer=cluster.layer)
    made = output.producer()
    assert made is not None
    made.attributes.update(node.attributes)
    return output


def _converted(cluster: Cluster, editor: Editor, x: Quantized, value: ir.Value) -> ir.Value:
    """`value`, which has x's scale, in that of the result and within its bounds."""
    y, bounds = cluster.result, cluster.bounds
    same = x.scale == y.scale and x.signed_zero_point == y.signed_zero_point
    if same and bounds == Range(bounds.zero_point):
        return value
    real = (np.arange(-128, 128) - x.signed_zero_point).astype(np.float32) * x.scale
    steps = np.rint(real / y.scale).astype(np.float64) + bounds.zero_point
    table = np.clip(steps, bounds.low, bounds.high).astype(np.int8)
    name, shape = f"{cluster.layer}.rescaled", shape_of(value)
    inputs = [value, editor.constant(table, f"{cluster.layer}.table")]
    attributes = {KERNEL: describe(IntegerTable(math.prod(shape)))}
    return editor.add("IntegerTable", inputs, INT8, shape, name=name, attributes=attributes, domain=DOMAIN)
