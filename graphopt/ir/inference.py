"""Types and shapes as ONNX infers them, with errors that name the node."""

from __future__ import annotations

import re

import onnx
import onnx.shape_inference
import onnx_ir as ir

from graphopt.errors import ShapeError
from graphopt.ir.text import to_text

# Data propagation keeps one table for both branches of an If, and fails where they use a name alike, as they may.
_NAME_IN_TWO_BRANCHES = "already exists"
_FAULTY_NODE = re.compile(r"\(op_type:(?P<op>[^,()]*)(?:, node name: (?P<name>.*?))?\): ")


def infer(model: ir.Model, proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto`, which is `model` without weights, with inferred types and shapes.

    Raises:
        ShapeError: an operator cannot take its inputs, or what is recorded contradicts what is inferred.
    """
    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # InferenceError, ValueError, RuntimeError, by version and fault
        if _NAME_IN_TWO_BRANCHES not in str(error):
            raise _explained(model, str(error)) from error
    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except Exception as error:
        raise _explained(model, str(error)) from error


def _explained(model: ir.Model, message: str) -> ShapeError:
    reason = message.replace("[ShapeInferenceError]", "").replace("[TypeInferenceError]", "")
    reason = re.sub(r"^\s*(Inference|Shape inference) error\(s\):", "", reason).strip()
    node = None
    if found := _FAULTY_NODE.search(message):
        node = _find(model, found["op"], found["name"] or "")
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    what = lines[0] if lines else "shape inference failed"
    if found and node is not None:
        what = f"{node.op_type} {node.name!r}: " + _FAULTY_NODE.sub("", what).strip()
    return ShapeError(what, where=to_text(model, around=node) if node is not None else "")


def _find(model: ir.Model, operator: str, name: str) -> ir.Node | None:
    candidates = [node for node in model.graph.all_nodes() if node.op_type == operator and (node.name or "") == name]
    return candidates[0] if len(candidates) == 1 else None
