"""Where the elements of a value lie in the buffer of another one, of which it is a rearrangement.

A rearrangement moves the indices of elements as it moves elements: applied to 0, 1, 2 … it tells where each element of
its result comes from. Where that is affine,

    source(i_0, …, i_n)  =  offset + Σ_d i_d · stride_d

a kernel with strides reads the source in place, and the rearrangement need not be computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_ir import serde

from graphopt.targets.tvm.quantized.editor import shape_of
from graphopt.targets.tvm.quantized.parameters import constant

REARRANGEMENTS = frozenset({"Expand", "Flatten", "Gather", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
MOST_ELEMENTS = 1 << 24  # whose indices are looked at


@dataclass(frozen=True)
class View:
    """`source` as an array of other axes: where its first element is, and the stride of each axis; 0 of one element."""

    source: ir.Value
    offset: int
    strides: tuple[int, ...]


def view_of(value: ir.Value, shape: tuple[int, ...], opset: int) -> View:
    """The value, spread to `shape`, in the buffer that is the furthest back of those that hold it affinely."""
    size = int(np.prod(shape_of(value)))
    origins = np.broadcast_to(np.arange(size).reshape(shape_of(value)), shape)
    affine = _affine(origins)
    assert affine is not None  # an array of its own is
    best = View(value, *affine)
    while (node := value.producer()) is not None and node.op_type in REARRANGEMENTS and node.domain in ("", "ai.onnx"):
        moved = indices_moved_by(node, opset)
        if moved is None or node.inputs[0] is None:
            break
        origins, value = moved.reshape(-1)[origins], node.inputs[0]
        affine = _affine(origins)
        if affine is not None:
            best = View(value, *affine)
    return best


def _affine(origins: np.ndarray) -> tuple[int, tuple[int, ...]] | None:
    first = int(origins.flat[0])
    steps = np.eye(origins.ndim, dtype=int)
    strides = [int(origins[tuple(step)]) - first if n > 1 else 0 for step, n in zip(steps, origins.shape, strict=True)]
    grid = first + sum(
        np.arange(n).reshape([-1 if e == d else 1 for e in range(origins.ndim)]) * stride
        for d, (n, stride) in enumerate(zip(origins.shape, strides, strict=True))
    )
    return (first, tuple(strides)) if np.array_equal(np.broadcast_to(grid, origins.shape), origins) else None


def indices_moved_by(node: ir.Node, opset: int) -> np.ndarray | None:
    """The index in its first input of each element of what the node gives; None if that is not known."""
    source = node.inputs[0]
    more = [None if value is None or not value.name else constant(value) for value in node.inputs[1:]]
    absent = [value is None or not value.name for value in node.inputs[1:]]
    if source is None or any(array is None and not gone for array, gone in zip(more, absent, strict=True)):
        return None
    if source.shape is None or not source.shape.is_static() or np.prod(shape_of(source)) > MOST_ELEMENTS:
        return None
    proto = serde.serialize_node(node)
    arrays = [np.arange(int(np.prod(shape_of(source)))).reshape(shape_of(source)), *more]
    feeds = {name: array for name, array in zip(proto.input, arrays, strict=True) if array is not None}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [helper.make_tensor_value_info(proto.output[0], onnx.TensorProto.INT64, None)]
    graph = helper.make_graph([proto], "rearrangement", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    found: Any = ReferenceEvaluator(model).run(None, feeds)
    return np.asarray(found[0])
