"""Attributes of an ONNX node in the form that TVM's converters read."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir import serde
from tvm.relax.frontend.onnx import onnx_frontend


def plain_attributes(node: ir.Node) -> dict[str, Any]:
    """Name to value, as `ONNXGraphImporter` parses them, with what it adds about the node's outputs."""
    attributes = onnx_frontend.ONNXGraphImporter({}, None)._parse_attr(serde.serialize_node(node).attribute)
    attributes["tvm_custom"] = {"name": node.name or "", "num_outputs": len(node.outputs)}
    return dict(attributes)
