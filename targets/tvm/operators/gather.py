"""Gather, GatherElements, GatherND and others that pick elements by index, as one read per element of the result.

Constant indices are checked and made positive at compile time. Those computed at run time are made positive and kept
within the buffer by the kernel: ONNX leaves an index out of range undefined, a read beyond a buffer may never happen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    axis_of,
    compute,
    constant,
    known,
    must_know,
    reshaped,
    shape_of,
    unsupported,
    wrapped,
    wrapped_constant,
)


def convert_gather(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Gather: out[i…, j…, k…] = data[i…, indices[j…], k…]."""
    data, indices = inputs
    return _gather(builder, data, indices, axis_of(attributes, len(shape_of(data))), node)


def convert_compress(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Compress by a constant condition: a fixed choice of elements."""
    condition = must_know(node, inputs, 1, "condition")
    assert condition is not None  # ONNX's checker asks for it
    data = inputs[0] if "axis" in attributes else builder.emit(reshaped(inputs[0], (-1,)))
    chosen = constant(np.flatnonzero(condition))
    return _gather(builder, data, chosen, axis_of(attributes, len(shape_of(data))), node)


def _gather(builder: relax.BlockBuilder, data: Any, indices: Any, axis: int, node: ir.Node) -> Any:
    shape, rank = shape_of(data), len(shape_of(indices))
    indices, index_of = _indices(indices, shape[axis], node)

    def gather(data: Any, indices: Any) -> Any:
        def element(*at: Any) -> Any:
            return data(*at[:axis], index_of(indices(*at[axis : axis + rank])), *at[axis + rank :])

        return te.compute((*shape[:axis], *indices.shape, *shape[axis + 1 :]), element, name="gather")

    return compute(builder, gather, data, indices, name="gather")


def convert_gather_elements(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """GatherElements: out[i…, j, k…] = data[i…, indices[i…, j, k…], k…]."""
    data, indices = inputs
    shape = shape_of(data)
    axis = axis_of(attributes, len(shape))
    indices, index_of = _indices(indices, shape[axis], node)

    def gather_elements(data: Any, indices: Any) -> Any:
        def element(*at: Any) -> Any:
            return data(*at[:axis], index_of(indices(*at)), *at[axis + 1 :])

        return te.compute(indices.shape, element, name="gather_elements")

    return compute(builder, gather_elements, data, indices, name="gather_elements")


def convert_gather_nd(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """GatherND: the last axis of `indices` indexes the axes of `data` behind the first `batch_dims`."""
    data, indices = inputs
    shape, batch = shape_of(data), int(attribute(attributes, "batch_dims", 0))
    *outer, depth = shape_of(indices)
    extents = shape[batch : batch + depth]
    array = known(indices)
    if array is not None:
        columns = [wrapped_constant(array[..., k], extent, node) for k, extent in enumerate(extents)]
        indices = constant(np.stack(columns, axis=-1) if columns else array)

    def gather_nd(data: Any, indices: Any) -> Any:
        def element(*at: Any) -> Any:
            read = [indices(*at[: len(outer)], k) for k in range(depth)]
            if array is None:
                read = [wrapped(index, extent) for index, extent in zip(read, extents, strict=True)]
            return data(*at[:batch], *read, *at[len(outer) :])

        return te.compute((*outer, *shape[batch + depth :]), element, name="gather_nd")

    return compute(builder, gather_nd, data, indices, name="gather_nd")


def convert_one_hot(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """OneHot: values[1] where the index is the position along `axis`, else values[0]; all off if out of range."""
    indices, _, values = inputs
    rank = len(shape_of(indices))
    axis = axis_of(attributes, rank + 1, -1)
    shape = tuple(int(extent) for extent in node.outputs[0].shape.numpy())  # type: ignore[union-attr]
    depth = shape[axis]

    def one_hot(indices: Any, values: Any) -> Any:
        def element(*at: Any) -> Any:
            index = indices(*at[:axis], *at[axis + 1 :]).astype("int64")
            index = tirx.Select(index < 0, index + depth, index)
            return tirx.Select(index == at[axis].astype("int64"), values(1), values(0))

        return te.compute(shape, element, name="one_hot")

    return compute(builder, one_hot, indices, values, name="one_hot")


def convert_reverse_sequence(
    builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node
) -> Any:
    """ReverseSequence: the first `sequence_lens[b]` elements of each sequence in reverse, the rest as they are."""
    data, lengths = inputs
    time, batch = (int(attribute(attributes, name, default)) for name, default in (("time_axis", 0), ("batch_axis", 1)))
    steps = shape_of(data)[time]

    def reverse_sequence(data: Any, lengths: Any) -> Any:
        def element(*at: Any) -> Any:
            step, length = at[time].astype("int64"), lengths(at[batch])
            source = wrapped(tirx.Select(step < length, length - 1 - step, step), steps)
            return data(*at[:time], source, *at[time + 1 :])

        return te.compute(data.shape, element, name="reverse_sequence")

    return compute(builder, reverse_sequence, data, lengths, name="reverse_sequence")


def _indices(indices: Any, extent: int, node: ir.Node) -> tuple[Any, Callable[[Any], Any]]:
    """The tensor of indices into an axis, and how the kernel reads one."""
    if not extent and int(np.prod(shape_of(indices))):
        raise unsupported(node, "it picks elements of an axis that has none", "correct the model's shapes")
    array = known(indices)
    if array is None:
        return indices, lambda index: wrapped(index, extent)
    return constant(wrapped_constant(array, extent, node)), lambda index: index


CONVERTERS = {
    "Compress": convert_compress,
    "Gather": convert_gather,
    "GatherElements": convert_gather_elements,
    "GatherND": convert_gather_nd,
    "OneHot": convert_one_hot,
    "ReverseSequence": convert_reverse_sequence,
}
