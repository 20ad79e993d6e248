"""Which operators our own converters cover, and which forms of others are refused because TVM computes them wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from graphopt.targets.tvm.operators import recurrent
from graphopt.targets.tvm.operators.activation import convert_clip
from graphopt.targets.tvm.operators.convolution import convert_conv

CONVERTERS: dict[str, Callable[..., Any]] = {
    "Clip": convert_clip,
    "Conv": convert_conv,
    **recurrent.CONVERTERS,
}


def refusal(node: ir.Node) -> str | None:
    """Why a node must not be lowered, or None."""
    return REFUSED.get(node.op_type)


REFUSED: dict[str, str] = {
    "If": "a branch that depends on the data has no lowering; make its condition constant",
    "Loop": "loops have no lowering; unroll it before export",
    "Scan": "scans have no lowering; unroll it before export",
}

# Operators with a definition in terms of others that TVM's importer computes otherwise than ONNX says.
EXPANDED: frozenset[str] = frozenset()
