"""SpaceToDepth and DepthToSpace: split axes, permute them, join them."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import relax

from graphopt.targets.tvm.operators.tensors import Attributes, Tensors, attribute, reshaped, shape_of


def convert_space_to_depth(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """SpaceToDepth: b × b pixels to channels, their position in the block the slow (DCR) or fast index."""
    n, c, h, w = shape_of(inputs[0])
    b = int(attributes["blocksize"].value)
    order = (0, 1, 3, 5, 2, 4) if attribute(attributes, "mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    blocks = builder.emit(reshaped(inputs[0], (n, c, h // b, b, w // b, b)))
    return reshaped(builder.emit(relax.op.permute_dims(blocks, order)), (n, c * b * b, h // b, w // b))


def convert_depth_to_space(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """DepthToSpace: the reverse of SpaceToDepth."""
    n, c, h, w = shape_of(inputs[0])
    b = int(attributes["blocksize"].value)
    depth = c // (b * b)
    split, order = ((n, b, b, depth, h, w), (0, 3, 4, 1, 5, 2))
    if attribute(attributes, "mode", "DCR") == "CRD":
        split, order = ((n, depth, b, b, h, w), (0, 1, 4, 2, 5, 3))
    blocks = builder.emit(reshaped(inputs[0], split))
    return reshaped(builder.emit(relax.op.permute_dims(blocks, order)), (n, depth, h * b, w * b))


CONVERTERS = {"DepthToSpace": convert_depth_to_space, "SpaceToDepth": convert_space_to_depth}
