"""CumSum and CumProd: one pass along the axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from tvm import relax, tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    dtype_of,
    kernel,
    must_know,
    reshaped,
    shape_of,
)


def convert_cum_sum(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """CumSum, exclusive or not, in either direction."""
    return _cumulative(builder, inputs, attributes, node, 0, lambda total, x: total + x)


def convert_cum_prod(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """CumProd, exclusive or not, in either direction."""
    return _cumulative(builder, inputs, attributes, node, 1, lambda total, x: total * x)


def _cumulative(
    builder: relax.BlockBuilder,
    inputs: Tensors,
    attributes: Attributes,
    node: ir.Node,
    neutral: int,
    combine: Callable[[Any, Any], Any],
) -> Any:
    x = inputs[0]
    shape = shape_of(x)
    axis = must_know(node, inputs, 1, "axis")
    assert axis is not None  # ONNX's checker asks for it
    k = int(axis.item()) % len(shape)
    outer, steps, inner = math.prod(shape[:k]), shape[k], math.prod(shape[k + 1 :])
    exclusive, reverse = attribute(attributes, "exclusive", 0), attribute(attributes, "reverse", 0)

    def body(x: Any, out: Any) -> None:
        with T.serial(outer) as o, T.serial(steps) as s, T.serial(inner) as i:
            at = steps - 1 - s if reverse else s
            before = at + 1 if reverse else at - 1
            first = tirx.const(neutral, dtype_of(inputs[0]))
            previous = tirx.if_then_else(s > 0, out[o, before, i], first)
            addend = tirx.if_then_else(s > 0, x[o, before, i], first) if exclusive else x[o, at, i]
            T.buffer_store(out, combine(previous, addend), [o, at, i])

    flat = (outer, steps, inner)
    result = kernel(builder, [reshaped(x, flat)], [(flat, dtype_of(x))], body, name="cumulative")
    return reshaped(result, shape)


CONVERTERS = {"CumProd": convert_cum_prod, "CumSum": convert_cum_sum}
