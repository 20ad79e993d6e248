"""What the importer wants of a model: a recent opset, and operators that it knows.

Operators that ONNX defines as functions of others are replaced by their definition, but only those that neither TVM's
importer nor ours converts, or that TVM's is known to compute wrongly: fewer, larger operators fuse better. What the
definitions compute of shapes is folded at once, since the importer needs it to be constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir import serde
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from tvm.relax.frontend.onnx import onnx_frontend

from graphopt import ir as gir
from graphopt.ir.functions import inline, to_model_opsets
from graphopt.targets.tvm.one_dimension import as_images
from graphopt.targets.tvm.operators.refusals import refusal
from graphopt.targets.tvm.operators.table import CONVERTERS, EXPANDED
from graphopt.targets.tvm.palettes import expand_palettes
from graphopt.targets.tvm.quantized.dynamic import rewrite_dynamic
from graphopt.targets.tvm.quantized.linear_operators import rewrite_linear_operators
from graphopt.targets.tvm.quantized.rewrite import rewrite
from graphopt.targets.tvm.quantized.stored_weights import rewrite_stored_weights

OLDEST_OPSET = 13  # TVM's converters know little of what changed before: Slice, Clip, Pad, Squeeze … by attributes
WORKING_OPSET = 17
ROUNDS = 8  # definitions nest a few deep; each round expands one level
DOMAIN = "graphopt.definitions"  # of the functions that are about to be inlined
NEVER_FOLDED = frozenset({"QuantizeLinear", "DequantizeLinear"})  # folding would hide that a weight is quantized


def prepare(model: ir.Model) -> ir.Model:
    """A model that computes the same for the importer to convert; `model` itself if nothing is to do.

    Raises ModelError if an old model cannot be converted to the working opset.
    """
    model = expand_palettes(model)
    if model.graph.opset_imports.get("", WORKING_OPSET) < OLDEST_OPSET:
        model = gir.convert_opset(model, WORKING_OPSET)
        gir.refresh_shapes(model)
    model = rewrite_linear_operators(model)
    for _ in range(ROUNDS):
        nodes = _nodes_to_expand(model)
        if not nodes:
            break
        model = _expand(gir.clone(model), nodes)
        gir.refresh_shapes(model)
        _fold(model)
    return as_images(rewrite_stored_weights(rewrite_dynamic(rewrite(model))))


def _nodes_to_expand(model: ir.Model) -> list[int]:
    known = set(onnx_frontend._get_convert_map()) | set(CONVERTERS)
    opset = model.graph.opset_imports.get("", 1)
    return [
        i
        for i, node in enumerate(model.graph)
        if node.domain in ("", "ai.onnx")
        and refusal(node) is None
        and (node.op_type not in known or EXPANDED.get(node.op_type, _never)(node))
        and _definition(node, opset) is not None
    ]


def _never(node: ir.Node) -> bool:
    return False


def _expand(model: ir.Model, indices: Sequence[int]) -> ir.Model:
    """`model`, changed in place if it can be, with the definitions of the nodes at `indices` in their place."""
    nodes = list(model.graph)
    for i in indices:
        node = nodes[i]
        definition = _definition(node, model.graph.opset_imports[""])
        assert definition is not None  # _nodes_to_expand asked
        name = f"{node.op_type}_{i}"  # a definition may depend on the node: each has its own
        del definition.attribute[:]
        definition.domain, definition.name = DOMAIN, name
        node.domain, node.op_type = DOMAIN, name
        for k, output in enumerate(node.outputs):
            output.name = output.name or f"{name}_unused_{k}"  # the inlined node that makes it needs a name for it
        function = serde.deserialize_function(definition)
        model.functions[function.identifier()] = function
    model.graph.opset_imports[DOMAIN] = 1
    opset = model.graph.opset_imports[""]
    if any(function.opset_imports.get("", opset) != opset for function in model.functions.values()):
        return serde.deserialize_model(to_model_opsets(serde.serialize_model(model)))
    inline(model, "the definition of an operator")
    return model


def _definition(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    """ONNX's definition of a node by others, with the node's attributes filled in; None where there is none."""
    try:
        schema = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return None
    proto = serde.serialize_node(node)
    stated = {attribute.name for attribute in proto.attribute}
    for name, attribute in schema.attributes.items():
        if name not in stated and attribute.default_value.type:
            proto.attribute.append(attribute.default_value)
    encoded = _encoded_definition(schema, proto, [_encoded_type(value) for value in node.inputs], opset)
    if encoded is None:
        return None
    definition = onnx.FunctionProto()
    definition.ParseFromString(encoded)
    made = {name for inner in definition.node for name in inner.output}
    for name in definition.output:  # it leaves out what the node does not ask for, and the inliner asks for all
        if name not in made:
            definition.node.append(onnx.helper.make_node("Constant", [], [name], value_int=0))
    _fill_attributes(definition.node, {attribute.name: attribute for attribute in proto.attribute})
    for entry in definition.opset_import:
        if not entry.domain and _means_the_same(definition.node, entry.version, opset):
            entry.version = opset
    return definition


def _encoded_definition(schema: Any, proto: onnx.NodeProto, types: list[bytes], opset: int) -> bytes | None:
    """The newest definition of an operator that the opset allows; `types` are those of the node's inputs."""
    if schema.has_function:
        versions = [version for version in schema.function_opset_versions if version <= opset]
        return bytes(schema.get_function_with_opset_version(max(versions))) if versions else None
    versions = [version for version in schema.context_dependent_function_opset_versions if version <= opset]
    if not versions:
        return None
    node = proto.SerializeToString()
    return bytes(schema.get_context_dependent_function_with_opset_version(max(versions), node, types))


def _encoded_type(value: ir.Value | None) -> bytes:
    return b"" if value is None or value.type is None else serde.serialize_value(value).type.SerializeToString()


def _means_the_same(nodes: Sequence[onnx.NodeProto], opset: int, other: int) -> bool:
    """Whether none of the operators changed between two opsets."""
    return all(
        onnx.defs.get_schema(node.op_type, opset).since_version
        == onnx.defs.get_schema(node.op_type, other).since_version
        and all(_means_the_same(attribute.g.node, opset, other) for attribute in node.attribute)
        for node in nodes
    )


def _fill_attributes(nodes: Sequence[onnx.NodeProto], given: dict[str, onnx.AttributeProto]) -> None:
    """Replace the references of a definition's nodes to its attributes, in subgraphs too; drop those not given."""
    for node in nodes:
        attributes = []
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                value = given.get(attribute.ref_attr_name)
                if value is None:
                    continue
                copy = onnx.AttributeProto()
                copy.CopyFrom(value)
                copy.name = attribute.name
                attributes.append(copy)
                continue
            if attribute.HasField("g"):
                _fill_attributes(attribute.g.node, given)
            attributes.append(attribute)
        del node.attribute[:]
        node.attribute.extend(attributes)


def _fold(model: ir.Model) -> None:
    """Compute what is constant, in place: the shapes and axes that definitions compute."""
    for _ in range(ROUNDS):
        folded = onnxscript.optimizer.fold_constants(
            model, should_fold=lambda node: False if node.op_type in NEVER_FOLDED else None
        )
        gir.refresh_shapes(model)
        if not folded.modified:
            break
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    onnxscript.optimizer.remove_unused_nodes(model)
    gir.refresh_shapes(model)
