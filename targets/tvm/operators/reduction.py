"""ReduceMax and ReduceMin, right for infinities, booleans and no elements at all.

TVM starts from the least finite number, and so takes it for the maximum of nothing but −∞.
"""

from __future__ import annotations

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
    highest,
    lowest,
    must_know,
    reshaped,
    shape_of,
)


def convert_reduce_max(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """ReduceMax; over no elements the least value of the type."""
    return _extremum(builder, inputs, attributes, node, largest=True)


def convert_reduce_min(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """ReduceMin; over no elements the greatest value of the type."""
    return _extremum(builder, inputs, attributes, node, largest=False)


def _extremum(
    builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node, *, largest: bool
) -> Any:
    x, dtype = inputs[0], dtype_of(inputs[0])
    shape = output_shape(node)
    worst = lowest if largest else highest
    if 0 in shape_of(x):
        return constant(np.full(shape, worst(np.dtype(dtype))))
    axes = reduced_axes(inputs, attributes, node)
    if not axes:
        return x
    computed = "uint8" if dtype == "bool" else dtype
    start = tirx.const(worst(np.dtype(computed)).item(), computed)
    reduce = te.comm_reducer(_larger if largest else _smaller, lambda _: start, name="extremum")
    extents = shape_of(x)
    kept = [k for k in range(len(extents)) if k not in axes]

    def extremum(x: Any) -> Any:
        over = {k: te.reduce_axis((0, extents[k]), name=f"r{k}") for k in axes}

        def element(*at: Any) -> Any:
            index = dict(zip(kept, at, strict=True)) | over
            return reduce(x(*(index[k] for k in range(len(extents)))), axis=list(over.values()))

        return te.compute([extents[k] for k in kept], element, name="extremum")

    if dtype == "bool":
        x = builder.emit(relax.op.astype(x, "uint8"))
    return reshaped(cast(compute(builder, extremum, x, name=node.op_type.lower()), dtype), shape)


def reduced_axes(inputs: Tensors, attributes: Attributes, node: ir.Node) -> tuple[int, ...]:
    """The axes of a Reduce operator, by attribute or input: all if none are given, or none (noop_with_empty_axes)."""
    rank = len(shape_of(inputs[0]))
    given = must_know(node, inputs, 1, "axes")
    axes = attribute(attributes, "axes", ()) if given is None else given.tolist()
    if not len(axes):
        return () if attribute(attributes, "noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(int(axis) % rank for axis in axes))


# TVM reads the number of arguments off a reducer's code: its own max and min take any number.


def _larger(a: Any, b: Any) -> Any:
    return tirx.max(a, b)


def _smaller(a: Any, b: Any) -> Any:
    return tirx.min(a, b)


CONVERTERS = {"ReduceMax": convert_reduce_max, "ReduceMin": convert_reduce_min}
