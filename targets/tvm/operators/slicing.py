"""Slice and Split with constant bounds: each element of a result is one read, which fuses with what follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te

from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    axis_of,
    compute,
    constant,
    dtype_of,
    known,
    must_know,
    shape_of,
)


def convert_slice(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Slice-10 and later, with any steps."""
    x = inputs[0]
    shape = shape_of(x)
    starts, ends, axes, steps = (
        must_know(node, inputs, i, name) for i, name in ((1, "starts"), (2, "ends"), (3, "axes"), (4, "steps"))
    )
    assert starts is not None and ends is not None  # ONNX's checker asks for them
    ranges = [range(extent) for extent in shape]
    for k, start in enumerate(starts):
        axis = int(axes[k]) % len(shape) if axes is not None else k
        step = int(steps[k]) if steps is not None else 1
        ranges[axis] = _range(int(start), int(ends[k]), step, shape[axis])
    return sliced(builder, x, ranges)


def _range(start: int, end: int, step: int, extent: int) -> range:
    """ONNX's bounds: negative ones count from the end, then they are cut to the axis, backward to −1 at the least."""
    start, end = (bound + extent if bound < 0 else bound for bound in (start, end))
    if step > 0:
        return range(min(max(start, 0), extent), min(max(end, 0), extent), step)
    return range(min(max(start, 0), extent - 1), min(max(end, -1), extent - 1), step)


def convert_split(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Split-13 and later, by sizes or into as many parts as the node has outputs."""
    x = inputs[0]
    shape = shape_of(x)
    axis = axis_of(attributes, len(shape))
    sizes = must_know(node, inputs, 1, "split")
    if sizes is None:
        part = -(-shape[axis] // len(node.outputs))
        sizes = np.diff(np.minimum(np.arange(len(node.outputs) + 1) * part, shape[axis]))
    ends = np.cumsum(sizes)
    parts = []
    for start, end in zip(ends - sizes, ends, strict=True):
        ranges = [range(extent) for extent in shape]
        ranges[axis] = range(int(start), int(end))
        parts.append(sliced(builder, x, ranges))
    return parts


def sliced(builder: relax.BlockBuilder, x: Any, ranges: list[range]) -> Any:
    """The elements of `x` in a range of each axis."""
    shape = tuple(map(len, ranges))
    array = known(x)
    if array is not None:
        return constant(array[np.ix_(*ranges)])
    if 0 in shape:
        return constant(np.zeros(shape, dtype=dtype_of(x)))
    if shape == shape_of(x) and all(r.step == 1 for r in ranges):
        return x

    def slice_of(x: Any) -> Any:
        def element(*at: Any) -> Any:
            return x(*(r.start + i * r.step for r, i in zip(ranges, at, strict=True)))

        return te.compute(shape, element, name="slice")

    return compute(builder, slice_of, x, name="slice")


CONVERTERS = {"Slice": convert_slice, "Split": convert_split}
