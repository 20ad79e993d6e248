"""What the importer wants of a model: a recent opset, and operators that it knows.

Operators that ONNX defines as functions of others are replaced by their definition, but only those that neither TVM's
importer nor ours converts, or that TVM's is known to compute wrongly: fewer, larger operators fuse better.
"""

from __future__ import annotations

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx_ir import serde
from tvm.relax.frontend.onnx import onnx_frontend

from graphopt import ir as gir
from graphopt.targets.tvm.operators.table import CONVERTERS, EXPANDED

OLDEST_OPSET = 13  # TVM's converters know little of what changed before: Slice, Clip, Pad, Squeeze … by attributes
WORKING_OPSET = 17
ROUNDS = 8  # definitions nest a few deep; each round expands one level


def prepare(model: ir.Model) -> ir.Model:
    """A model that computes the same for the importer to convert; `model` itself if nothing is to do.

    Raises ModelError if an old model cannot be converted to the working opset.
    """
    if model.graph.opset_imports.get("", WORKING_OPSET) < OLDEST_OPSET:
        model = gir.convert_opset(model, WORKING_OPSET)
        gir.refresh_shapes(model)
    return _expand(model)


def _expand(model: ir.Model) -> ir.Model:
    known = set(onnx_frontend._get_convert_map()) - EXPANDED | set(CONVERTERS)
    for _ in range(ROUNDS):
        wanted = {node.op_type for node in model.graph if node.domain in ("", "ai.onnx")} - known
        functions = sorted(name for name in wanted if _has_definition(name, model.graph.opset_imports.get("", 1)))
        if not functions:
            break
        proto = onnx.inliner.inline_selected_functions(
            serde.serialize_model(model), [("", name) for name in functions], inline_schema_functions=True
        )
        expanded = serde.deserialize_model(proto)
        gir.refresh_shapes(expanded)
        if [n.op_type for n in expanded.graph] == [n.op_type for n in model.graph]:
            break
        model = expanded
    return model


def _has_definition(name: str, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(name, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)
