"""The integer kernels by kind, and how a marked function becomes the kernel for a core.

The importer does not know the target. It emits each kernel in its portable form, with the description of what it
computes in the attribute INTEGER, and `schedule` replaces it by the form for the instructions that the core has. All
forms give the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tvm import tirx

from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.kernels.dynamic_quantize import DynamicQuantize, dynamic_quantize_kernel
from graphopt.targets.tvm.kernels.integer_affine import IntegerAffine, affine_kernel
from graphopt.targets.tvm.kernels.integer_batch_product import IntegerBatchProduct, Operand, batch_product_kernel
from graphopt.targets.tvm.kernels.integer_concat import IntegerConcat, concat_kernel
from graphopt.targets.tvm.kernels.integer_depthwise import IntegerDepthwise, depthwise_kernel
from graphopt.targets.tvm.kernels.integer_elementwise import (
    IntegerBinary,
    IntegerMean,
    IntegerTable,
    binary_kernel,
    mean_kernel,
    table_kernel,
)
from graphopt.targets.tvm.kernels.integer_layer_norm import IntegerLayerNorm, layer_norm_kernel
from graphopt.targets.tvm.kernels.integer_max_pool import IntegerMaxPool, max_pool_kernel
from graphopt.targets.tvm.kernels.integer_product import IntegerProduct, product_kernel
from graphopt.targets.tvm.kernels.integer_softmax import IntegerSoftmax, softmax_kernel
from graphopt.targets.tvm.kernels.integer_transposition import (
    DequantizeChannelsFirst,
    IntegerTransposition,
    QuantizeChannelsLast,
    dequantize_channels_first_kernel,
    quantize_channels_last_kernel,
    transposition_kernel,
)
from graphopt.targets.tvm.kernels.requantize import Instructions, Range, instructions_of
from graphopt.targets.tvm.kernels.window import Window

INTEGER = "graphopt.integer"  # attribute of a kernel's function: its description

Kernel = Callable[[Any, Instructions], tirx.PrimFunc]
KINDS: dict[str, tuple[type, Kernel]] = {
    "DequantizeChannelsFirst": (DequantizeChannelsFirst, dequantize_channels_first_kernel),
    "DynamicQuantize": (DynamicQuantize, dynamic_quantize_kernel),
    "IntegerAffine": (IntegerAffine, affine_kernel),
    "IntegerBatchProduct": (IntegerBatchProduct, batch_product_kernel),
    "IntegerBinary": (IntegerBinary, binary_kernel),
    "IntegerConcat": (IntegerConcat, concat_kernel),
    "IntegerDepthwise": (IntegerDepthwise, depthwise_kernel),
    "IntegerLayerNorm": (IntegerLayerNorm, layer_norm_kernel),
    "IntegerMaxPool": (IntegerMaxPool, max_pool_kernel),
    "IntegerMean": (IntegerMean, mean_kernel),
    "IntegerProduct": (IntegerProduct, product_kernel),
    "IntegerSoftmax": (IntegerSoftmax, softmax_kernel),
    "IntegerTable": (IntegerTable, table_kernel),
    "IntegerTransposition": (IntegerTransposition, transposition_kernel),
    "QuantizeChannelsLast": (QuantizeChannelsLast, quantize_channels_last_kernel),
}
_PARTS: dict[str, type] = {"window": Window, "bounds": Range, "a": Operand, "b": Operand}


def describe(kernel: Any) -> str:
    """A kernel's description as text."""
    return json.dumps([type(kernel).__name__, asdict(kernel)])


def read(description: str) -> Any:
    """What `describe` was given."""
    name, fields = json.loads(description)
    parts = {key: _PARTS[key](**_tuples(value)) if key in _PARTS else value for key, value in fields.items()}
    return KINDS[name][0](**_tuples(parts))


def emit(description: str, instructions: Instructions = Instructions.PORTABLE) -> tirx.PrimFunc:
    """The kernel of a description."""
    kernel = read(description)
    return KINDS[type(kernel).__name__][1](kernel, instructions).with_attr(INTEGER, description)


def schedule(function: tirx.PrimFunc, target: TargetDescription) -> tirx.PrimFunc | None:
    """The kernel for `target` if `function` is one of these; None for any other."""
    if function.attrs is None or INTEGER not in function.attrs:
        return None
    instructions = instructions_of(target)
    return function if instructions is Instructions.PORTABLE else emit(str(function.attrs[INTEGER]), instructions)


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
