"""ConvTranspose in integers: a convolution that makes all phases (`targets.tvm.phases`), and a shuffle of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.targets.tvm.kernels.integer_product import IntegerProduct, pack_weights
from graphopt.targets.tvm.kernels.window import Window
from graphopt.targets.tvm.phases import Phases, filters_of, of_phases, phases_of
from graphopt.targets.tvm.quantized.cluster import Cluster
from graphopt.targets.tvm.quantized.editor import Editor, shape_of
from graphopt.targets.tvm.quantized.parameters import INT8, Quantized, constant, dequantized
from graphopt.targets.tvm.quantized.products import (
    bias_steps,
    emit_product,
    factors_of,
    unfit_convolution,
    unfit_factors,
)


def rewrite_transposed(cluster: Cluster, editor: Editor) -> str | None:
    """ConvTranspose in one or two dimensions: replaced, or why not."""
    node = cluster.node
    x, w = dequantized(node.inputs[0]), dequantized(node.inputs[1])
    reason = unfit_factors(x, w)
    if reason is not None or x is None or w is None:
        return reason
    reason = unfit_convolution(x)
    if reason is not None:
        return reason
    rank, kernel = len(shape_of(x.integers)) - 2, shape_of(w.integers)[2:]
    result = shape_of(cluster.result.integers)
    phases = phases_of(node, shape_of(x.integers)[2:], result[2:], kernel)
    if isinstance(phases, str):
        return phases
    found = _weights(x, w, node.attributes.get_int("group", 1))
    if isinstance(found, str):
        return found
    weights, scale = found
    steps = bias_steps(node.inputs[2] if len(node.inputs) > 2 else None, scale)
    if isinstance(steps, str):
        return steps
    group, two = node.attributes.get_int("group", 1), (1,) * (2 - rank)
    strides = phases.strides
    flat = weights.reshape(*weights.shape[:2], *two, *kernel)
    filters = np.ascontiguousarray(filters_of(flat, group, two + strides).transpose(0, 2, 3, 1))
    spread = [of_phases(vector, group, math.prod(strides)) for vector in (scale, steps)]
    factors = factors_of(cluster, x, filters, *spread)
    if isinstance(factors, str):
        return factors
    image = (result[0], *two, *shape_of(x.integers)[2:])
    above, below = ((0,) * len(two) + side for side in phases.pads)
    window = Window(
        (*image, shape_of(x.integers)[1]),  # type: ignore[arg-type]
        two + phases.taps,  # type: ignore[arg-type]
        pads=(*above, *below),  # type: ignore[arg-type]
        padding=x.signed_zero_point,
        groups=group,
    )
    product = IntegerProduct(window, len(filters) // group, cluster.bounds, factors.pairs, lifted=factors.lifted)
    positions = window.output[3 - rank :]
    shape = (result[0], *positions, product.all_columns)
    packed = pack_weights(factors.weights, window)
    made = emit_product(editor, cluster, product, editor.channels_last(x.integers), packed, factors, shape)
    shuffled = _shuffled(editor, cluster.layer, made, group, phases)
    editor.replace(cluster.result.integers, shuffled, channels_last=True)
    return None


def _weights(x: Quantized, w: Quantized, group: int) -> tuple[np.ndarray, np.ndarray] | str:
    """int64 [output channels, inputs of a group, …] less their zero point, and the scales of their products."""
    given = constant(w.integers)
    assert given is not None  # unfit_factors looked
    inputs, columns = given.shape[0] // group, given.shape[1]
    grouped = np.swapaxes(given.astype(np.int64).reshape(group, inputs, *given.shape[1:]), 1, 2)
    scale, zero_point = (
        (np.broadcast_to(array, (group, columns)) for array in (w.scale, w.zero_point))
        if (w.per_tensor or w.axis == 1)
        else (None, None)
    )
    if scale is None and w.axis == 0 and inputs == 1:
        scale, zero_point = (np.broadcast_to(array[:, None], (group, columns)) for array in (w.scale, w.zero_point))
    if scale is None or zero_point is None:
        return "its weights are quantized along another axis than the output channels"
    weights = grouped - zero_point.reshape(group, columns, *[1] * (given.ndim - 1))
    if weights.min(initial=0) < -128 or weights.max(initial=0) > 127:
        return "its weights less their zero point do not fit int8"
    return weights.reshape(group * columns, *weights.shape[2:]), (x.scale * scale.reshape(-1)).astype(np.float32)


def _shuffled(editor: Editor, layer: str, made: ir.Value, group: int, phases: Phases) -> ir.Value:
    """[batch, *positions, group · phases · channels] as [batch, *kept, group · channels]."""
    batch, *positions, columns = shape_of(made)
    strides, kept, rank = phases.strides, phases.kept, len(positions)
    channels = columns // group // math.prod(strides)

    def moved(
        operator: str, value: ir.Value, shape: Sequence[int], *more: ir.Value, **attributes: Sequence[int]
    ) -> ir.Value:
        return editor.add(operator, [value, *more], INT8, shape, name=f"{layer}.phases", attributes=attributes)

    def vector(values: Sequence[int], kind: str) -> ir.Value:
        return editor.constant(np.array(values, np.int64), f"{layer}.{kind}")

    parted = [batch, *positions, group, *strides, channels]
    value = moved("Reshape", made, parted, vector(parted, "parted"))
    axes = range(1, rank + 1)
    order = [0, *(axis for d in axes for axis in (d, d + rank + 1)), rank + 1, 2 * rank + 2]
    value = moved("Transpose", value, [parted[axis] for axis in order], perm=order)
    whole = [batch, *(q * s for q, s in zip(positions, strides, strict=True)), group * channels]
    value = moved("Reshape", value, whole, vector(whole, "whole"))
    if list(kept) == whole[1:-1]:
        return value
    bounds = (("begins", phases.begins), ("ends", phases.ends), ("axes", list(axes)))
    cut = [vector(values, kind) for kind, values in bounds]
    return moved("Slice", value, [batch, *kept, group * channels], *cut)
