"""How each operator is converted: by our own converters, by ONNX's definition of it, or else by TVM's importer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from graphopt.targets.tvm.operators import (
    activation,
    convolution,
    dynamic,
    elementwise,
    folding,
    fourier,
    gather,
    index_of_extremum,
    normalization,
    pooling,
    quantization,
    rearrangement,
    recurrent,
    reduction,
    reshaping,
    resize,
    scan,
    scatter,
    slicing,
    top_k,
)
from graphopt.targets.tvm.operators.tensors import is_used
from graphopt.targets.tvm.quantized.conversion import CONVERTERS as INTEGER_CONVERTERS
from graphopt.targets.tvm.quantized.stored_weights import CONVERTERS as STORED_CONVERTERS

CONVERTERS: dict[str, Callable[..., Any]] = {
    **activation.CONVERTERS,
    **convolution.CONVERTERS,
    **dynamic.CONVERTERS,
    **elementwise.CONVERTERS,
    **folding.CONVERTERS,
    **fourier.CONVERTERS,
    **gather.CONVERTERS,
    **index_of_extremum.CONVERTERS,
    **normalization.CONVERTERS,
    **pooling.CONVERTERS,
    **quantization.CONVERTERS,
    **rearrangement.CONVERTERS,
    **recurrent.CONVERTERS,
    **reduction.CONVERTERS,
    **reshaping.CONVERTERS,
    **resize.CONVERTERS,
    **scan.CONVERTERS,
    **scatter.CONVERTERS,
    **slicing.CONVERTERS,
    **top_k.CONVERTERS,
    **INTEGER_CONVERTERS,
    **STORED_CONVERTERS,
}


def _always(node: ir.Node) -> bool:
    return True


def _has_several_outputs(node: ir.Node) -> bool:
    return any(is_used(node, index) for index in range(1, len(node.outputs)))


# Operators with a definition in terms of others that TVM's importer lacks a form of, or computes otherwise than ONNX
# says: which of their nodes are replaced by the definition.
EXPANDED: dict[str, Callable[[ir.Node], bool]] = {
    "Attention": _always,
    "LayerNormalization": _has_several_outputs,
    "RMSNormalization": _always,
}
