"""MaxPool that also gives the indices of the maxima, which TVM's lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.operators.attributes import convert_by_tvm
from graphopt.targets.tvm.operators.reshaping import output_shape
from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    dtype_of,
    for_each,
    is_used,
    kernel,
    lowest,
    shape_of,
)


def convert_max_pool(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """MaxPool; `Indices` count the elements of the whole input, spatial axes by rows or by columns (storage_order)."""
    if not is_used(node, 1):
        return convert_by_tvm(builder, inputs, node)
    shape, made, dtype = shape_of(inputs[0]), output_shape(node), dtype_of(inputs[0])
    spatial = shape[2:]
    rank = len(spatial)
    window = list(attributes["kernel_shape"].value)
    strides = attribute(attributes, "strides", [1] * rank)
    dilations = attribute(attributes, "dilations", [1] * rank)
    begins = _begins(attributes, spatial, made[2:], window, strides, dilations)
    by_column = bool(attribute(attributes, "storage_order", 0))
    weights = [math.prod(spatial[:k]) if by_column else math.prod(spatial[k + 1 :]) for k in range(rank)]
    least = lowest(np.dtype(dtype)).item()

    def body(x: Any, values: Any, indices: Any) -> None:
        def pool(at: Sequence[Any]) -> None:
            best = IRBuilder.name("best", T.alloc_buffer((1,), dtype, scope="local", layout=None))
            place = IRBuilder.name("place", T.alloc_buffer((1,), "int64", scope="local", layout=None))
            T.buffer_store(best, tirx.const(least, dtype), [0])
            T.buffer_store(place, T.int64(0), [0])

            def visit(offset: Sequence[Any]) -> None:
                where = [at[2 + k] * strides[k] - begins[k] + offset[k] * dilations[k] for k in range(rank)]
                inside = tirx.all(*(tirx.all(i >= 0, i < n) for i, n in zip(where, spatial, strict=True)))
                with T.If(inside), T.Then():
                    element = x[(at[0], at[1], *where)]
                    with T.If(element > best[0]), T.Then():
                        T.buffer_store(best, element, [0])
                        position = sum((i * w for i, w in zip(where, weights, strict=True)), start=T.int64(0))
                        T.buffer_store(place, (at[0] * shape[1] + at[1]) * math.prod(spatial) + position, [0])

            for_each(window, visit)
            T.buffer_store(values, best[0], at)
            T.buffer_store(indices, place[0], at)

        for_each(made, pool)

    return kernel(builder, [inputs[0]], [(made, dtype), (made, "int64")], body, name="max_pool_with_indices")


def _begins(
    attributes: Attributes,
    spatial: Sequence[int],
    made: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """The padding in front of each spatial axis."""
    rank = len(spatial)
    auto_pad = attribute(attributes, "auto_pad", "NOTSET")
    if auto_pad == "NOTSET":
        return list(attribute(attributes, "pads", [0] * 2 * rank)[:rank])
    if auto_pad == "VALID":
        return [0] * rank
    totals = [max((made[k] - 1) * strides[k] + (window[k] - 1) * dilations[k] + 1 - spatial[k], 0) for k in range(rank)]
    return [total // 2 if auto_pad == "SAME_UPPER" else total - total // 2 for total in totals]


CONVERTERS = {"MaxPool": convert_max_pool}
