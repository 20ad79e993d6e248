"""ArgMax and ArgMin: the index of the greatest or least element along an axis, of several neighbours side by side.

TVM's own start from the least finite number, so that the index of nothing but −∞ is −1, and look at single elements.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import onnx_ir as ir
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.requantize import splat, vector, wide
from graphopt.targets.tvm.operators.reshaping import output_shape
from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    axis_of,
    dtype_of,
    kernel,
    reshaped,
    shape_of,
)

WIDTHS = (16, 4, 1)  # elements side by side
PARALLEL_READS = 1 << 16


def convert_index(
    builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node, *, largest: bool
) -> Any:
    """ArgMax or ArgMin-1, -11, -12, -13."""
    shape, dtype = shape_of(inputs[0]), dtype_of(inputs[0])
    axis, last = axis_of(attributes, len(shape)), bool(attribute(attributes, "select_last_index", 0))
    outer, extent, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    lanes = next(width for width in WIDTHS if width <= inner)
    blocks = -(-inner // lanes)

    def better(new: Any, best: Any) -> Any:
        first, second = (new, best) if largest else (best, new)
        return first >= second if last else first > second

    def body(x: Any, y: Any) -> None:
        loop = T.parallel if outer * extent * inner >= PARALLEL_READS else T.serial
        with loop(outer * blocks) as task:
            row = T.Bind(task // blocks)
            start = T.Bind(T.min(task % blocks * lanes, tirx.const(inner - lanes, "int64")))  # the last ones overlap
            here, at = vector(start, lanes), vector(tirx.const(0, "int64"), lanes)
            best, index = (
                IRBuilder.name(name, T.alloc_buffer((lanes,), kind, scope="local", layout=None))
                for name, kind in (("best", dtype), ("index", "int32"))
            )
            T.buffer_store(best, x[row, tirx.const(0, "int64"), here], [at])
            T.buffer_store(index, splat(tirx.const(0, "int32"), lanes), [at])
            with T.serial(tirx.const(extent - 1, "int64")) as k:
                new = T.Bind(x[row, k + 1, here])
                number = splat(tirx.Cast("int32", k) + 1, lanes)
                T.buffer_store(index, tirx.Select(better(new, best[at]), number, index[at]), [at])
                T.buffer_store(best, tirx.Select(better(new, best[at]), new, best[at]), [at])
            T.buffer_store(y, tirx.Cast(wide("int64", lanes), index[at]), [row, here])

    flat = reshaped(inputs[0], (outer, extent, inner))
    made = kernel(builder, [flat], [((outer, inner), "int64")], body, name=node.op_type.lower())
    return reshaped(made, output_shape(node))


CONVERTERS = {name: partial(convert_index, largest=name == "ArgMax") for name in ("ArgMax", "ArgMin")}
