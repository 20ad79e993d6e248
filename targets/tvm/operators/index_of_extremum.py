"""ArgMax and ArgMin: the index of the greatest or least element along an axis, of several neighbours side by side.

TVM's own start from the least finite number, so that the index of nothing but −∞ is −1, and look at single elements.
"""

from __future__ import annotations

import math
from typing import Any

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
    dtype_of,
    kernel,
    reshaped,
    shape_of,
)

WIDTHS = (16, 4, 1)  # elements side by side
PARALLEL_READS = 1 << 16


def convert_arg_max(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """ArgMax-1, -11, -12, -13."""
    return _index(builder, inputs, attributes, node, largest=True)


def convert_arg_min(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """ArgMin-1, -11, -12, -13."""
    return _index(builder, inputs, attributes, node, largest=False)


def _index(
    builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node, *, largest: bool
) -> Any:
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
            here, at = _lanes(start, lanes), _lanes(tirx.const(0, "int64"), lanes)
            best, index = (
                IRBuilder.name(name, T.alloc_buffer((lanes,), kind, scope="local", layout=None))
                for name, kind in (("best", dtype), ("index", "int32"))
            )
            T.buffer_store(best, x[row, tirx.const(0, "int64"), here], [at])
            T.buffer_store(index, _spread(tirx.const(0, "int32"), lanes), [at])
            with T.serial(tirx.const(extent - 1, "int64")) as k:
                new = T.Bind(x[row, k + 1, here])
                number = _spread(tirx.Cast("int32", k) + 1, lanes)
                T.buffer_store(index, tirx.Select(better(new, best[at]), number, index[at]), [at])
                T.buffer_store(best, tirx.Select(better(new, best[at]), new, best[at]), [at])
            wide = "int64" if lanes == 1 else f"int64x{lanes}"
            T.buffer_store(y, tirx.Cast(wide, index[at]), [row, here])

    flat = reshaped(inputs[0], (outer, extent, inner))
    made = kernel(builder, [flat], [((outer, inner), "int64")], body, name=node.op_type.lower())
    return reshaped(made, output_shape(node))


def _lanes(start: Any, lanes: int) -> Any:
    return start if lanes == 1 else tirx.Ramp(start, tirx.const(1, "int64"), lanes)


def _spread(value: Any, lanes: int) -> Any:
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


CONVERTERS = {"ArgMax": convert_arg_max, "ArgMin": convert_arg_min}
