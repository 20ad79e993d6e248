"""The operators of quantization came with several opsets; this brings a model to the one that a scheme needs."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import convert_opset
from graphopt.ir.reading import opset_of


def at_least(model: ir.Model, version: int) -> bool:
    """Convert the model to opset `version`, in place, if it is written in an older one; whether that was so.

    Its nodes and values are other objects then. Raises ModelError for an operator that cannot be converted.
    """
    if opset_of(model) >= version:
        return False
    converted = convert_opset(model, version)
    model.graph = converted.graph
    model.ir_version = converted.ir_version
    return True
