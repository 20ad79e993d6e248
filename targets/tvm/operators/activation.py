"""Clip with constant bounds, as TVM's clip: two instructions, where TVM's importer makes a graph that guards against NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import tvm
from tvm import relax

from graphopt.errors import UnsupportedError


def convert_clip(builder: relax.BlockBuilder, inputs: list[Any], attributes: dict[str, Any], node: ir.Node) -> Any:
    """Clip-1 (bounds as attributes) and Clip-11 (as inputs, constant here)."""
    x = inputs[0]
    dtype = str(x.ty.dtype.dtype)
    limits = np.iinfo(dtype) if np.issubdtype(np.dtype(dtype), np.integer) else np.finfo(dtype)
    low = _bound(inputs, 1, attributes, "min", node)
    high = _bound(inputs, 2, attributes, "max", node)
    if not np.issubdtype(np.dtype(dtype), np.floating):
        x_min = limits.min if low is None else low
        return _apply(builder, x, x_min, limits.max if high is None else high, dtype)
    return _apply(builder, x, low, high, dtype)


def _apply(builder: relax.BlockBuilder, x: Any, low: Any, high: Any, dtype: str) -> Any:
    if low is not None:
        x = builder.emit(relax.op.maximum(x, relax.const(low, dtype)))
    return x if high is None else relax.op.minimum(x, relax.const(high, dtype))


def _bound(inputs: list[Any], position: int, attributes: dict[str, Any], name: str, node: ir.Node) -> Any:
    if name in attributes:
        return attributes[name].value
    given = inputs[position] if position < len(inputs) else None
    if given is None:
        return None
    if not isinstance(given, tvm.ir.GenericConst):
        raise UnsupportedError(
            f"Clip {node.name!r}: its {name} is computed at run time, a constant was expected",
            advice="make the bound a constant before export",
        )
    return given.value.numpy().item()
