"""ReduceMax and ReduceMin where TVM has no such kernel: of booleans, and over no elements at all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax

from graphopt.targets.tvm.operators.reshaping import output_shape
from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    cast,
    constant,
    dtype_of,
    must_know,
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
    if 0 in shape_of(x):
        return constant(np.full(shape, _worst(np.dtype(dtype), largest)))
    axes = reduced_axes(inputs, attributes, node)
    if not axes:
        return x
    if dtype == "bool":
        x = builder.emit(relax.op.astype(x, "uint8"))
    reduce = relax.op.max if largest else relax.op.min
    result = reduce(x, list(axes), keepdims=len(shape) == len(shape_of(x)))
    return cast(builder.emit(result), dtype)


def reduced_axes(inputs: Tensors, attributes: Attributes, node: ir.Node) -> tuple[int, ...]:
    """The axes of a Reduce operator, given as an attribute or input: all if none are given, unless it says otherwise."""
    rank = len(shape_of(inputs[0]))
    given = must_know(node, inputs, 1, "axes")
    axes = attribute(attributes, "axes", ()) if given is None else given.tolist()
    if not len(axes):
        return () if attribute(attributes, "noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(int(axis) % rank for axis in axes))


def _worst(dtype: np.dtype[Any], largest: bool) -> np.generic:
    if dtype.kind == "b":
        return np.bool_(not largest)
    if dtype.kind == "f":
        return dtype.type(-math.inf if largest else math.inf)
    limits = np.iinfo(dtype)
    return dtype.type(limits.min if largest else limits.max)


CONVERTERS = {"ReduceMax": convert_reduce_max, "ReduceMin": convert_reduce_min}
