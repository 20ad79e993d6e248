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
from graphopt.targets.tvm.kernels.integer_tiles import Extents, Form, forms
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

Kernel = Callable[..., tirx.PrimFunc]  # of the description, the instructions and, where there are tiles, their form
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
_TILED: dict[str, Callable[[Any], Extents]] = {
    "IntegerBatchProduct": lambda kernel: kernel.product.extents,
    "IntegerProduct": lambda kernel: kernel.extents,
}
_PARTS: dict[str, type] = {"window": Window, "bounds": Range, "a": Operand, "b": Operand, "combination": IntegerBinary}


def describe(kernel: Any) -> str:
    """A kernel's description as text."""
    return json.dumps([type(kernel).__name__, asdict(kernel)])


def read(description: str) -> Any:
    """What `describe` was given."""
    name, fields = json.loads(description)
    return KINDS[name][0](**_with_parts(fields))


def emit(description: str, target: TargetDescription | None = None, place: int = 0) -> tirx.PrimFunc:
    """The kernel of a description for a target, in its portable form for none.

    place: of the tile among those that fit, the best by the model first; the last of fewer.
    """
    kernel = read(description)
    instructions = Instructions.PORTABLE if target is None else instructions_of(target)
    fitting = _forms(kernel, instructions, target)
    chosen = fitting[min(place, len(fitting) - 1) :][:1]
    return KINDS[type(kernel).__name__][1](kernel, instructions, *chosen).with_attr(INTEGER, description)


def tile_count(function: tirx.PrimFunc, target: TargetDescription) -> int | None:
    """Among how many tiles `schedule` chooses; None if `function` is none of these."""
    if function.attrs is None or INTEGER not in function.attrs:
        return None
    return len(_forms(read(str(function.attrs[INTEGER])), instructions_of(target), target)) or 1


def schedule(function: tirx.PrimFunc, target: TargetDescription, place: int = 0) -> tirx.PrimFunc | None:
    """The kernel for `target` if `function` is one of these; None for any other. `place`: as for `emit`."""
    if function.attrs is None or INTEGER not in function.attrs:
        return None
    portable = instructions_of(target) is Instructions.PORTABLE
    return function if portable else emit(str(function.attrs[INTEGER]), target, place)


def _forms(kernel: Any, instructions: Instructions, target: TargetDescription | None) -> list[Form]:
    """The tiles of a kernel that is computed in tiles, the best by the model first."""
    extents = _TILED.get(type(kernel).__name__)
    return [] if extents is None else forms(extents(kernel), instructions, target)


def _with_parts(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as a description has them: dictionaries of parts as these, and lists as tuples."""
    return {
        key: _PARTS[key](**_with_parts(value))
        if isinstance(value, dict)
        else tuple(value)
        if isinstance(value, list)
        else value
        for key, value in fields.items()
    }
