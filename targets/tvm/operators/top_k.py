"""TopK: the k best of each row, kept sorted while one pass runs over the row.

A new element that beats the last of the k is inserted by moving the worse ones one place down. Of equal elements the
one with the lower index comes first, as ONNX says. The cost is n + (insertions · k): for n random elements about
k·log(n/k) of them are inserted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.operators.reshaping import output_shape
from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    axis_of,
    constant,
    dtype_of,
    kernel,
    reshaped,
    shape_of,
)


def convert_top_k(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """TopK: values and int64 indices along `axis`, largest or smallest; always sorted."""
    x = inputs[0]
    shape, dtype = shape_of(x), dtype_of(x)
    axis = axis_of(attributes, len(shape), -1)
    made = output_shape(node)
    k, n = made[axis], shape[axis]
    if 0 in made:
        return [constant(np.zeros(made, dtype)), constant(np.zeros(made, np.int64))]
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    largest = bool(attribute(attributes, "largest", 1))

    def body(x: Any, values: Any, indices: Any) -> None:
        def better(a: Any, b: Any) -> Any:
            return a > b if largest else a < b

        with T.serial(outer) as o, T.serial(inner) as i:
            place = IRBuilder.name("place", T.alloc_buffer((1,), "int64", scope="local", layout=None))
            with T.serial(n) as j:
                last = T.min(tirx.const(k - 1, "int64"), j.astype("int64"))  # the worst place that x[j] may take
                with T.If(tirx.any(j < k, better(x[o, j, i], values[o, last, i]))), T.Then():
                    T.buffer_store(place, last, [0])
                    with T.serial(last) as step:
                        p = last - step
                        with T.If(tirx.all(place[0] == p, better(x[o, j, i], values[o, p - 1, i]))), T.Then():
                            T.buffer_store(values, values[o, p - 1, i], [o, p, i])
                            T.buffer_store(indices, indices[o, p - 1, i], [o, p, i])
                            T.buffer_store(place, p - 1, [0])
                    T.buffer_store(values, x[o, j, i], [o, place[0], i])
                    T.buffer_store(indices, j.astype("int64"), [o, place[0], i])

    flat = [((outer, k, inner), dtype), ((outer, k, inner), "int64")]
    result = kernel(builder, [reshaped(x, (outer, n, inner))], flat, body, name="top_k")
    return [reshaped(builder.emit(relax.TupleGetItem(result, i)), made) for i in range(2)]


CONVERTERS = {"TopK": convert_top_k}
