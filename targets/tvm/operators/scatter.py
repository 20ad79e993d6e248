"""Operators that write elements at indices: Scatter, ScatterElements, ScatterND, TensorScatter, MaxUnpool.

One thread writes all updates in their order, as duplicates of an index ask for. Indices are made positive and kept
within the buffer as in `gather`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.operators.reshaping import output_shape
from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    axis_of,
    compute,
    dtype_of,
    for_each,
    kernel,
    reshaped,
    shape_of,
    unsupported,
    wrapped,
)

REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": T.max,
    "min": T.min,
}


def convert_scatter_elements(
    builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node
) -> Any:
    """ScatterElements, and Scatter of old: out[i…, indices[i…, j, k…], k…] = updates[i…, j, k…]."""
    data, indices, updates = inputs
    shape = shape_of(data)
    axis = axis_of(attributes, len(shape))
    reduce = _reduction(attributes, node)

    def body(data: Any, indices: Any, updates: Any, out: Any) -> None:
        _copy(data, out, shape)

        def write(at: Sequence[Any]) -> None:
            where = (*at[:axis], wrapped(indices[tuple(at)], shape[axis]), *at[axis + 1 :])
            T.buffer_store(out, reduce(out[where], updates[tuple(at)]), where)

        for_each(shape_of(inputs[1]), write)

    return kernel(builder, [data, indices, updates], [(shape, dtype_of(data))], body, name="scatter_elements")


def convert_scatter_nd(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """ScatterND: the last axis of `indices` indexes the first axes of `data`."""
    data, indices, updates = inputs
    shape = shape_of(data)
    *outer, depth = shape_of(indices)
    reduce = _reduction(attributes, node)
    slices, size = math.prod(outer), math.prod(shape[depth:])

    def body(data: Any, indices: Any, updates: Any, out: Any) -> None:
        with T.serial(math.prod(shape)) as i:
            T.buffer_store(out, data[i], [i])
        with T.serial(slices) as s:
            first: Any = T.int64(0)
            for k in range(depth):
                first = first * shape[k] + wrapped(indices[s, k], shape[k])
            with T.serial(size) as i:
                where = first * size + i
                T.buffer_store(out, reduce(out[where], updates[s * size + i]), [where])

    flat = [
        reshaped(data, (math.prod(shape),)),
        reshaped(indices, (slices, depth)),
        reshaped(updates, (slices * size,)),
    ]
    result = kernel(builder, flat, [((math.prod(shape),), dtype_of(data))], body, name="scatter_nd")
    return reshaped(result, shape)


def convert_max_unpool(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """MaxUnpool: zeros with each pooled element where it came from.

    The indices count elements of the whole tensor of the size that pooling had, which a given `output_shape` may
    enlarge: the positions then stay those of the smaller tensor.
    """
    data, indices = inputs[:2]
    shape = output_shape(node)
    pooled = shape_of(data)
    spatial = len(pooled) - 2
    kernel_shape = attributes["kernel_shape"].value
    strides = attribute(attributes, "strides", [1] * spatial)
    pads = attribute(attributes, "pads", [0] * 2 * spatial)
    inferred = (
        *pooled[:2],
        *(
            (extent - 1) * stride - before - after + size
            for extent, stride, before, after, size in zip(
                pooled[2:], strides, pads[:spatial], pads[spatial:], kernel_shape, strict=True
            )
        ),
    )

    def body(data: Any, indices: Any, out: Any) -> None:
        with T.serial(math.prod(shape)) as i:
            T.buffer_store(out, tirx.const(0, dtype_of(inputs[0])), [i])
        with T.serial(math.prod(pooled)) as i:
            rest = wrapped(indices[i], math.prod(inferred))
            where: Any = T.int64(0)
            for axis in range(len(shape)):
                stride = math.prod(inferred[axis + 1 :])
                where = where * shape[axis] + rest // stride % inferred[axis]
            T.buffer_store(out, data[i], [where])

    flat = [reshaped(tensor, (math.prod(pooled),)) for tensor in (data, indices)]
    result = kernel(builder, flat, [((math.prod(shape),), dtype_of(data))], body, name="max_unpool")
    return reshaped(result, shape)


def convert_tensor_scatter(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """TensorScatter: an update written into a cache along `axis`, from each batch's index on; circular or not."""
    cache, update = inputs[:2]
    starts = inputs[2:3]
    axis = axis_of(attributes, len(shape_of(cache)), -2)
    size, written = shape_of(cache)[axis], shape_of(update)[axis]
    circular = attribute(attributes, "mode", "linear") == "circular"

    def tensor_scatter(cache: Any, update: Any, *starts: Any) -> Any:
        def element(*at: Any) -> Any:
            position = at[axis].astype("int64")
            step = position - (starts[0](at[0]) if starts else 0)
            if circular:
                step = tirx.floormod(step, tirx.const(size, "int64"))
            inside = tirx.all(step >= 0, step < written)
            new = update(*at[:axis], tirx.max(tirx.min(step, written - 1), 0), *at[axis + 1 :])
            return tirx.Select(inside, new, cache(*at))

        return te.compute(cache.shape, element, name="tensor_scatter")

    return compute(builder, tensor_scatter, cache, update, *starts, name="tensor_scatter")


def _reduction(attributes: Attributes, node: ir.Node) -> Callable[[Any, Any], Any]:
    name = attribute(attributes, "reduction", "none")
    if name not in REDUCTIONS:
        raise unsupported(node, f"its reduction is {name!r}", f"known are {', '.join(REDUCTIONS)}")
    return REDUCTIONS[name]


def _copy(source: Any, target: Any, shape: Sequence[int]) -> None:
    for_each(shape, lambda at: T.buffer_store(target, source[tuple(at)], at))


CONVERTERS = {
    "MaxUnpool": convert_max_unpool,
    "Scatter": convert_scatter_elements,
    "ScatterElements": convert_scatter_elements,
    "ScatterND": convert_scatter_nd,
    "TensorScatter": convert_tensor_scatter,
}
