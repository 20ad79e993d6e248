"""Col2Im: columns of image blocks back to an image, where overlapping blocks add up."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from tvm import relax, te, tirx

from graphopt.targets.tvm.operators.reshaping import output_shape
from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    compute,
    dtype_of,
    must_know,
    shape_of,
)


def convert_col2im(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Col2Im: each pixel gathers the block elements that lie on it."""
    block = must_know(node, inputs, 2, "block_shape")
    assert block is not None  # ONNX's checker asks for it
    made = output_shape(node)
    window, spatial = [int(extent) for extent in block], made[2:]
    rank = len(spatial)
    strides, dilations, pads = (
        attribute(attributes, name, [default] * count)
        for name, default, count in (("strides", 1, rank), ("dilations", 1, rank), ("pads", 0, 2 * rank))
    )
    blocks = [
        (spatial[k] + pads[k] + pads[rank + k] - dilations[k] * (window[k] - 1) - 1) // strides[k] + 1
        for k in range(rank)
    ]
    zero = tirx.const(0, dtype_of(inputs[0]))

    def col2im(columns: Any) -> Any:
        offsets = [te.reduce_axis((0, extent), name=f"o{k}") for k, extent in enumerate(window)]

        def element(*at: Any) -> Any:
            start = [at[2 + k] + pads[k] - offsets[k] * dilations[k] for k in range(rank)]
            number = [start[k] // strides[k] for k in range(rank)]
            hit = tirx.all(
                *(tirx.all(start[k] >= 0, start[k] % strides[k] == 0, number[k] < blocks[k]) for k in range(rank))
            )
            row = at[1] * math.prod(window) + sum(offsets[k] * math.prod(window[k + 1 :]) for k in range(rank))
            column = sum(number[k] * math.prod(blocks[k + 1 :]) for k in range(rank))
            return te.sum(tirx.if_then_else(hit, columns(at[0], row, column), zero), axis=offsets)

        return te.compute(made, element, name="col2im")

    assert math.prod(blocks) == shape_of(inputs[0])[2]
    return compute(builder, col2im, inputs[0], name="col2im")


CONVERTERS = {"Col2Im": convert_col2im}
