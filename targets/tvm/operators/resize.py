"""Resize in all its modes: along each axis a sum of a few elements, their positions and weights fixed at compile time.

For an output index o of an axis of length L, scaled by s, the coordinate transformation gives x(o) in the input.
  nearest  takes the element at round(x), in one of four ways to round;
  linear   two elements around x, weights 1 − |x − i|;
  cubic    four, weights of Keys' kernel with `cubic_coeff_a`.
With antialias a shrinking axis (s < 1) stretches the kernel by 1/s and so takes more elements, with weights that are
made to sum to one. Elements beyond the border repeat it, or count for nothing if `exclude_outside`. The modes are
separable, so the axes are resized one after the other.

The formulas are those of ONNX's Resize-19 (onnx/reference/ops/op_resize.py).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from graphopt.targets.tvm.operators.reshaping import output_shape
from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    cast,
    compute,
    constant,
    dtype_of,
    is_float,
    must_know,
    shape_of,
    unsupported,
)

UNROLLED_TAPS = 4  # up to here a sum is written out and fuses with what follows
ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True)
class Axis:
    """How one axis is resized: lengths, the factor from input to output, and tf_crop_and_resize's interval."""

    axis: int
    length: int
    new_length: int
    scale: float
    roi: tuple[float, float]


@dataclass(frozen=True)
class Table:
    """For each output index along an axis: positions [new_length, taps], weights of that shape, what lies outside."""

    positions: np.ndarray
    weights: np.ndarray
    outside: np.ndarray


def convert_resize(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Resize-11 to -19; `scales` or `sizes` constant."""
    x = inputs[0]
    mode = attribute(attributes, "mode", "nearest")
    if mode not in ("nearest", "linear", "cubic"):
        raise unsupported(node, f"its mode is {mode!r}", "known are nearest, linear and cubic")
    if mode != "nearest" and not is_float(x):
        raise unsupported(node, f"it interpolates {dtype_of(x)}", "cast its input to float32")
    tables = {axis.axis: _table(axis, attributes, node) for axis in _axes(inputs, attributes, node)}
    extrapolate = any(table.outside.any() for table in tables.values())
    kept = {k: table for k, table in tables.items() if not _is_identity(table, shape_of(x)[k])}
    if mode == "nearest":
        result = _nearest(builder, x, kept)
    else:
        result = builder.emit(cast(x, "float32")) if dtype_of(x) == "float16" else x
        for k, table in kept.items():
            result = _weighted_sum(builder, result, k, table)
        result = cast(result, dtype_of(x))
    if extrapolate:
        value = attribute(attributes, "extrapolation_value", 0.0)
        result = _extrapolated(builder, result, tables, value)
    return result


def _axes(inputs: Tensors, attributes: Attributes, node: ir.Node) -> list[Axis]:
    x = inputs[0]
    rank = len(shape_of(x))
    names = ((1, "roi"), (2, "scales"), (3, "sizes"))
    roi, scales, sizes = (_present(must_know(node, inputs, i, name)) for i, name in names)
    axes = [axis % rank for axis in attribute(attributes, "axes", range(rank))]
    shape = output_shape(node)
    if scales is None and sizes is None:
        raise unsupported(node, "it has neither scales nor sizes", "give it one of them")
    if scales is None:
        scales = _scales_of_sizes(sizes, [shape_of(x)[axis] for axis in axes], attributes)
    found = []
    for i, axis in enumerate(axes):
        interval = (0.0, 1.0) if roi is None else (float(roi[i]), float(roi[len(axes) + i]))
        found.append(Axis(axis, shape_of(x)[axis], shape[axis], float(scales[i]), interval))
    return found


def _present(array: np.ndarray | None) -> np.ndarray | None:
    """An empty constant stands for an absent input, as before opset 13."""
    return None if array is None or not array.size else array


def _scales_of_sizes(sizes: Any, lengths: list[int], attributes: Attributes) -> np.ndarray:
    scales = np.asarray(sizes, dtype=np.float64) / np.asarray(lengths, dtype=np.float64)
    policy = attribute(attributes, "keep_aspect_ratio_policy", "stretch")
    if policy == "not_larger":
        return np.full_like(scales, scales.min())
    return np.full_like(scales, scales.max()) if policy == "not_smaller" else scales


def _table(axis: Axis, attributes: Attributes, node: ir.Node) -> Table:
    mode = attribute(attributes, "mode", "nearest")
    transformation = attribute(attributes, "coordinate_transformation_mode", "half_pixel")
    x = _coordinates(axis, transformation, node)
    crop = transformation == "tf_crop_and_resize"
    outside = (x < 0) | (x > axis.length - 1) if crop else np.zeros(len(x), dtype=bool)
    if mode == "nearest":
        rounding = attribute(attributes, "nearest_mode", "round_prefer_floor")
        if rounding not in ROUNDINGS:
            raise unsupported(node, f"its nearest_mode is {rounding!r}", f"known are {', '.join(ROUNDINGS)}")
        positions = ROUNDINGS[rounding](x)[:, None]
        return Table(_clamped(positions, axis.length), np.ones(positions.shape), outside)
    stretch = min(axis.scale, 1.0) if attribute(attributes, "antialias", 0) else 1.0
    radius = (1 if mode == "linear" else 2) / stretch
    first = np.ceil(x - radius) if stretch < 1 else np.floor(x) - (radius - 1)
    positions = first[:, None] + np.arange(math.ceil(2 * radius) + (stretch < 1))
    distance = np.abs(positions - x[:, None]) * stretch
    weights = _linear(distance) if mode == "linear" else _cubic(distance, attribute(attributes, "cubic_coeff_a", -0.75))
    if attribute(attributes, "exclude_outside", 0):
        weights = np.where((positions >= 0) & (positions < axis.length), weights, 0)
    if stretch < 1 or attribute(attributes, "exclude_outside", 0):
        weights = weights / weights.sum(axis=1, keepdims=True)
    return Table(_clamped(positions, axis.length), weights, outside)


def _clamped(positions: np.ndarray, length: int) -> np.ndarray:
    return np.asarray(np.clip(positions, 0, max(length - 1, 0)), dtype=np.int64)


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(1 - distance, 0))


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.asarray(np.where(distance <= 1, near, np.where(distance < 2, far, 0)))


def _coordinates(axis: Axis, transformation: str, node: ir.Node) -> np.ndarray:
    """x of each output index, by the formulas of the standard."""
    o, n, scale = np.arange(axis.new_length, dtype=np.float64), axis.new_length, axis.scale
    last = axis.length - 1
    exact = scale * axis.length  # the length that the scale asks for, before it is rounded down
    if transformation == "half_pixel":
        return (o + 0.5) / scale - 0.5
    if transformation == "half_pixel_symmetric":
        adjustment = n / exact
        return axis.length / 2 * (1 - adjustment) + (o + 0.5) / scale - 0.5
    if transformation == "pytorch_half_pixel":
        return (o + 0.5) / scale - 0.5 if n > 1 else np.zeros(n)
    if transformation == "align_corners":
        return o * last / (exact - 1) if exact != 1 else np.zeros(n)
    if transformation == "asymmetric":
        return o / scale
    if transformation == "tf_half_pixel_for_nn":
        return (o + 0.5) / scale
    if transformation == "tf_crop_and_resize":
        start, end = axis.roi
        if n > 1:
            return start * last + o * (end - start) * last / (exact - 1)
        return np.full(n, 0.5 * (start + end) * last)
    raise unsupported(node, f"its coordinate_transformation_mode is {transformation!r}", "use half_pixel")


def _is_identity(table: Table, length: int) -> bool:
    if table.positions.shape[0] != length:
        return False
    dense = np.zeros((length, length))
    np.add.at(dense, (np.arange(length)[:, None], table.positions), table.weights)
    return bool(np.array_equal(dense, np.eye(length)))


def _nearest(builder: relax.BlockBuilder, x: Any, tables: dict[int, Table]) -> Any:
    axes = list(tables)
    shape = tuple(tables[k].positions.shape[0] if k in tables else n for k, n in enumerate(shape_of(x)))

    def resize_nearest(x: Any, *positions: Any) -> Any:
        at_axis = dict(zip(axes, positions, strict=True))

        def element(*at: Any) -> Any:
            return x(*(at_axis[k](i) if k in at_axis else i for k, i in enumerate(at)))

        return te.compute(shape, element, name="resize_nearest")

    if not tables:
        return x
    positions = [constant(table.positions[:, 0]) for table in tables.values()]
    return compute(builder, resize_nearest, x, *positions, name="resize_nearest")


def _weighted_sum(builder: relax.BlockBuilder, x: Any, axis: int, table: Table) -> Any:
    length, taps = table.positions.shape
    shape = (*shape_of(x)[:axis], length, *shape_of(x)[axis + 1 :])

    def resize_axis(x: Any, positions: Any, weights: Any) -> Any:
        def tap(at: tuple[Any, ...], t: Any) -> Any:
            o = at[axis]
            return x(*at[:axis], positions(o, t), *at[axis + 1 :]) * weights(o, t)

        if taps <= UNROLLED_TAPS:
            return te.compute(shape, lambda *at: reduce(operator.add, (tap(at, t) for t in range(taps))), name="resize")
        t = te.reduce_axis((0, taps), name="t")
        return te.compute(shape, lambda *at: te.sum(tap(at, t), axis=t), name="resize")

    weights = constant(table.weights.astype(dtype_of(x)))
    return compute(builder, resize_axis, x, constant(table.positions), weights, name="resize_axis")


def _extrapolated(builder: relax.BlockBuilder, x: Any, tables: dict[int, Table], value: float) -> Any:
    """`x` with `value` where any axis lies outside of the input."""
    axes = list(tables)

    def extrapolate(x: Any, *outside: Any) -> Any:
        def element(*at: Any) -> Any:
            beyond = tirx.any(*(mask(at[k]) for k, mask in zip(axes, outside, strict=True)))
            return tirx.Select(beyond, tirx.const(value, x.dtype), x(*at))

        return te.compute(x.shape, element, name="extrapolate")

    return compute(builder, extrapolate, x, *(constant(table.outside) for table in tables.values()), name="extrapolate")


CONVERTERS = {"Resize": convert_resize}
