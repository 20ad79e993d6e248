"""ConvTranspose in integers: a convolution that makes all phases of a stride at each position, and a shuffle of pixels.

Along one axis, with stride s, padding p in front and kernel k, element o of the result is

    y[o] = Σ_t w[r + s t] · x[q − t],    q = (o + p) div s,  r = (o + p) mod s,  t = 0 … T − 1,  T = ⌈k / s⌉

For each q that is a convolution of T neighbours of x with s filters, one for each r, whose taps lie in reverse; taps
beyond the kernel are 0. Results of all r of a q side by side are the result, which begins at r = p mod s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.targets.tvm.kernels.integer_product import IntegerProduct, pack_weights
from graphopt.targets.tvm.kernels.window import Window
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
    strides = tuple(node.attributes.get_ints("strides", (1,) * rank))
    if any(step != 1 for step in node.attributes.get_ints("dilations", (1,) * rank)):
        return "it is dilated"
    result = shape_of(cluster.result.integers)
    sizes, kept = shape_of(x.integers)[2:], result[2:]
    fronts = _fronts(node, sizes, kept, kernel, strides)
    taps = tuple(-(-k // s) for k, s in zip(kernel, strides, strict=True))
    firsts = [p // s for p, s in zip(fronts, strides, strict=True)]
    lasts = [(o - 1 + p) // s for o, p, s in zip(kept, fronts, strides, strict=True)]
    pads = (
        [t - 1 - q for t, q in zip(taps, firsts, strict=True)],
        [q - n + 1 for q, n in zip(lasts, sizes, strict=True)],
    )
    if any(pad < 0 for side in pads for pad in side) or any(p < 0 for p in fronts):
        return "its padding exceeds its kernel"
    found = _weights(x, w, node.attributes.get_int("group", 1))
    if isinstance(found, str):
        return found
    weights, scale = found
    steps = bias_steps(node.inputs[2] if len(node.inputs) > 2 else None, scale)
    if isinstance(steps, str):
        return steps
    group, two = node.attributes.get_int("group", 1), (1,) * (2 - rank)
    filters = _phases(weights, group, two + kernel, two + strides, two + taps)
    spread = [_of_phases(vector, group, math.prod(strides)) for vector in (scale, steps)]
    factors = factors_of(cluster, x, filters, *spread)
    if isinstance(factors, str):
        return factors
    image = (result[0], *two, *sizes, shape_of(x.integers)[1])
    around = ((0,) * len(two) + tuple(pads[0]), (0,) * len(two) + tuple(pads[1]))
    window = Window(image, two + taps, pads=(*around[0], *around[1]), padding=x.signed_zero_point, groups=group)  # type: ignore[arg-type]
    product = IntegerProduct(window, len(filters) // group, cluster.bounds, factors.pairs, lifted=factors.lifted)
    positions = window.output[3 - rank :]
    shape = (result[0], *positions, product.all_columns)
    packed = pack_weights(factors.weights, window)
    made = emit_product(editor, cluster, product, editor.channels_last(x.integers), packed, factors, shape)
    begins = [p % s for p, s in zip(fronts, strides, strict=True)]
    shuffled = _shuffled(editor, cluster.layer, made, group, strides, begins, kept)
    editor.replace(cluster.result.integers, shuffled, channels_last=True)
    return None


def _fronts(
    node: ir.Node, sizes: Sequence[int], kept: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[int]:
    """The padding in front of each axis; what is asked for otherwise is found from the result's shape."""
    rank = len(sizes)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID") and "output_shape" not in node.attributes:
        return list(node.attributes.get_ints("pads", (0,) * (2 * rank)))[:rank] if auto == "NOTSET" else [0] * rank
    more = node.attributes.get_ints("output_padding", (0,) * rank)
    totals = [s * (n - 1) + extra + k - o for s, n, extra, k, o in zip(strides, sizes, more, kernel, kept, strict=True)]
    return [total - total // 2 if auto != "SAME_UPPER" else total // 2 for total in totals]


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


def _phases(
    weights: np.ndarray, group: int, kernel: tuple[int, ...], strides: tuple[int, ...], taps: tuple[int, ...]
) -> np.ndarray:
    """Filters of all phases, [group, phase, channel] in order, each [taps, taps, inputs]: taps in reverse."""
    outputs, inputs = weights.shape[:2]
    room = [t * s - k for t, s, k in zip(taps, strides, kernel, strict=True)]
    padded = np.pad(weights.reshape(outputs, inputs, *kernel), ((0, 0), (0, 0), *((0, more) for more in room)))
    parted = padded.reshape(group, outputs // group, inputs, taps[0], strides[0], taps[1], strides[1])
    parted = parted[:, :, :, ::-1, :, ::-1].transpose(0, 4, 6, 1, 3, 5, 2)  # [g, s, s, channel, t, t, inputs]
    return np.ascontiguousarray(parted).reshape(-1, *taps, inputs)


def _of_phases(vector: np.ndarray, group: int, phases: int) -> np.ndarray:
    """What holds for each output channel, for the filters of `_phases`."""
    each = vector.reshape(group, 1, -1)
    return np.broadcast_to(each, (group, phases, each.shape[2])).reshape(-1)


def _shuffled(
    editor: Editor,
    layer: str,
    made: ir.Value,
    group: int,
    strides: Sequence[int],
    begins: Sequence[int],
    kept: Sequence[int],
) -> ir.Value:
    """[batch, *positions, group · phases · channels] as [batch, *kept, group · channels]."""
    batch, *positions, columns = shape_of(made)
    rank, phases = len(positions), math.prod(strides)
    channels = columns // group // phases

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
    ends = [begin + size for begin, size in zip(begins, kept, strict=True)]
    cut = [vector(values, kind) for kind, values in (("begins", begins), ("ends", ends), ("axes", list(axes)))]
    return moved("Slice", value, [batch, *kept, group * channels], *cut)
