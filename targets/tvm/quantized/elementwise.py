"""Add, Sub, Mul and means as integer kernels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.targets.tvm.kernels.integer_elementwise import IntegerBinary, IntegerMean, fixed_point
from graphopt.targets.tvm.quantized.affine import rewrite_affine
from graphopt.targets.tvm.quantized.cluster import Cluster
from graphopt.targets.tvm.quantized.editor import Editor, shape_of
from graphopt.targets.tvm.quantized.emission import emit_kernel
from graphopt.targets.tvm.quantized.parameters import INT8, UINT8, Quantized, constant, dequantized

MOST_PIXELS = 2**23  # whose sum of int8 surely fits int32


def rewrite_binary(cluster: Cluster, editor: Editor) -> str | None:
    """Add, Sub and Mul of two tensors, of which one may be stored, by channel above all: replaced, or why not."""
    node, y = cluster.node, cluster.result
    if rewrite_affine(cluster, editor) is None:
        return None
    a, b = (_integers(value) for value in node.inputs)
    if a is None or b is None or all(constant(q.integers) is not None for q in (a, b)):
        return "its inputs are not both quantized to 8 bits"
    sign = -1 if node.op_type == "Sub" else 1
    shape = shape_of(y.integers)
    if shape_of(a.integers) != shape and node.op_type != "Sub":
        a, b = b, a
    spread = shape_of(b.integers) != shape
    last = len(shape) > 2 and any(editor.has_channels_last(q.integers) for q in (a, b))
    if spread:
        if shape_of(a.integers) != shape or shape_of(b.integers) != (*shape[:2], *[1] * (len(shape) - 2)):
            return "its inputs are not of one shape, nor one by channel"
        last = True
    if node.op_type == "Mul":
        factors, offset = (a.signed_zero_point, b.signed_zero_point), 0
        multiplier = float(np.float32(a.scale * b.scale) / y.scale)
    else:
        ratios = (float(a.scale) / float(y.scale), sign * float(b.scale) / float(y.scale))
        factors, bits = fixed_point(ratios)
        offset = -(a.signed_zero_point * factors[0] + b.signed_zero_point * factors[1])
        multiplier = math.ldexp(1.0, -bits)
    if not _is_normal(multiplier):
        return "the ratio of its scales is not a normal number"
    kernel = IntegerBinary(
        operation="multiply" if node.op_type == "Mul" else "add",
        shape=(shape[0], math.prod(shape[2:]), shape[1]) if spread else (1, 1, math.prod(shape)),
        b_spread=spread,
        factors=factors,
        offset=offset,
        multiplier=multiplier,
        bounds=cluster.bounds,
    )
    sources = [editor.channels_last(q.integers) if last else editor.int8(q.integers) for q in (a, b)]
    emitted = [*shape[:1], *shape[2:], shape[1]] if last else list(shape)
    _replace(cluster, editor, kernel, sources, emitted, channels_last=last)
    return None


def rewrite_mean(cluster: Cluster, editor: Editor) -> str | None:
    """GlobalAveragePool, and ReduceMean over all axes but the first two: replaced, or why not."""
    node, x = cluster.node, _integers(cluster.node.inputs[0])
    if x is None:
        return "its input is not quantized to 8 bits"
    shape = shape_of(x.integers)
    if len(shape) < 3 or (node.op_type == "ReduceMean" and _axes(node, len(shape)) != set(range(2, len(shape)))):
        return "it is no mean over the pixels of each channel"
    pixels = math.prod(shape[2:])
    multiplier = float(np.float32(float(x.scale) / (float(cluster.result.scale) * pixels)))
    if pixels > MOST_PIXELS or not _is_normal(multiplier):
        return "its sums may overflow 32 bits, or the ratio of its scales is not a normal number"
    kernel = IntegerMean(
        shape=(shape[0], pixels, shape[1]),
        offset=-x.signed_zero_point * pixels,
        multiplier=multiplier,
        bounds=cluster.bounds,
    )
    # One pixel is left: channels first and last are the same.
    emitted = shape_of(cluster.result.integers)
    _replace(cluster, editor, kernel, [editor.channels_last(x.integers)], emitted, channels_last=False)
    return None


def _replace(
    cluster: Cluster, editor: Editor, kernel: Any, inputs: list[ir.Value], shape: Any, *, channels_last: bool
) -> None:
    made = emit_kernel(cluster, editor, kernel, inputs, shape)
    editor.replace(cluster.result.integers, made, channels_last=channels_last)


def _integers(value: ir.Value | None) -> Quantized | None:
    """A tensor of 8 bits with one scale."""
    found = dequantized(value)
    return found if found is not None and found.integers.dtype in (INT8, UINT8) and found.per_tensor else None


def _is_normal(multiplier: float) -> bool:
    limits = np.finfo(np.float32)
    return bool(limits.tiny <= multiplier <= limits.max)


def _axes(node: ir.Node, rank: int) -> set[int]:
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = node.attributes["axes"].as_ints() if "axes" in node.attributes else given
    return set() if axes is None else {int(axis) % rank for axis in axes}
