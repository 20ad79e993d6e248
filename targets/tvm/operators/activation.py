"""Clip as one maximum and one minimum, where TVM's importer makes a graph that guards against NaN; and Elu."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from graphopt.targets.tvm.operators.tensors import Attributes, Tensors, attribute, compute, constant, dtype_of, given


def convert_clip(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Clip-1 (bounds as attributes) and Clip-11 (as inputs)."""
    x = inputs[0]
    low = _bound(inputs, 1, attributes, "min")
    high = _bound(inputs, 2, attributes, "max")
    if low is not None:
        x = builder.emit(relax.op.maximum(x, low))
    return x if high is None else relax.op.minimum(x, high)


def _bound(inputs: Tensors, position: int, attributes: Attributes, name: str) -> Any:
    if name in attributes:
        return constant(np.array(attributes[name].value, dtype=dtype_of(inputs[0])))
    return given(inputs, position)


def convert_elu(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Elu: x where it is positive, else α·(eˣ − 1)."""
    x, alpha = inputs[0], attribute(attributes, "alpha", 1.0)
    dtype = dtype_of(x)

    def elu(x: Any) -> Any:
        zero, one = tirx.const(0, dtype), tirx.const(1, dtype)

        def element(*at: Any) -> Any:
            below = tirx.const(alpha, dtype) * (tirx.exp(tirx.min(x(*at), zero)) - one)
            return tirx.Select(x(*at) > zero, x(*at), below)

        return te.compute(x.shape, element, name="elu")

    return compute(builder, elu, x, name="elu")


CONVERTERS = {"Clip": convert_clip, "Elu": convert_elu}
