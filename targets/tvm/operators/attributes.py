"""TVM's own converters, called for one node, and the attributes in the form that they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir import serde
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend


def plain_attributes(node: ir.Node) -> dict[str, Any]:
    """Name to value, as `ONNXGraphImporter` parses them, with what it adds about the node's outputs."""
    attributes = onnx_frontend.ONNXGraphImporter({}, None)._parse_attr(serde.serialize_node(node).attribute)
    attributes["tvm_custom"] = {"name": node.name or "", "num_outputs": len(node.outputs)}
    return dict(attributes)


def opset_of(node: ir.Node) -> int:
    """The version of the standard operators that the node's graph is written in."""
    assert node.graph is not None  # nodes are converted where they stand
    return int(node.graph.opset_imports[""])


def convert_by_tvm(
    builder: relax.BlockBuilder,
    inputs: Sequence[Any],
    node: ir.Node,
    changed: Mapping[str, Any] | None = None,
    *,
    operator: str | None = None,
) -> Any:
    """What TVM's converter makes of a node, or of it as an `operator`, some attributes `changed` (None removes one)."""
    attributes = plain_attributes(node)
    for name, value in (changed or {}).items():
        attributes.pop(name, None)
        if value is not None:
            attributes[name] = value
    convert = onnx_frontend._get_convert_map()[operator or node.op_type].get_converter(opset_of(node))
    return convert(builder, onnx_frontend.onnx_input(inputs), attributes, [{}, {}])
