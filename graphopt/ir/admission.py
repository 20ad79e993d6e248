"""Decide whether a parsed ModelProto is a model that graphopt can hold: opsets, operators, onnx's checker."""

from __future__ import annotations

import difflib
from functools import cache
from typing import Any

import onnx
import onnx.checker
import onnx.defs

from graphopt.errors import ModelError
from graphopt.ir.tensors import each_graph, each_node, each_tensor

OLDEST_OPSET = 7
_MAX_LISTED = 5


def newest_opset() -> int:
    """The newest version of the default operator set that the installed onnx package knows."""
    return int(onnx.defs.onnx_opset_version())


def _canonical_domain(domain: str) -> str:
    """ "ai.onnx" is another name of the default domain ""."""
    return "" if domain == "ai.onnx" else domain


def name_default_domain(proto: onnx.ModelProto) -> None:
    """Write the default domain as "" everywhere, in place: onnx's tools do not know its other name."""
    for named in (*proto.opset_import, *each_node(proto), *proto.functions):
        named.domain = _canonical_domain(named.domain)
    for function in proto.functions:
        for entry in function.opset_import:
            entry.domain = _canonical_domain(entry.domain)


@cache
def _schemas_by_domain() -> dict[str, dict[str, int]]:
    """For each standard domain its operators, and the opset that first has each."""
    first: dict[str, dict[str, int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        operators = first.setdefault(schema.domain, {})
        operators[schema.name] = min(schema.since_version, operators.get(schema.name, schema.since_version))
    return first


def is_standard(domain: str) -> bool:
    """Whether the onnx package defines the operators of `domain`."""
    return domain in _schemas_by_domain()


def check_model(proto: onnx.ModelProto, origin: str) -> None:
    """Raise ModelError unless `proto` is valid ONNX whose standard operators are all known.

    Operators of custom domains pass; the default domain is named "", see `name_default_domain`. The data of tensors is
    not looked at, see `tensors.check_tensors`.
    """
    opsets = check_opsets(proto, origin)
    _check_operators(proto, opsets, origin)
    _check_outputs(proto.graph, origin)
    try:
        onnx.checker.check_model(without_data(proto))
    except Exception as error:  # the checker raises many types: ValidationError, ValueError, RuntimeError
        raise ModelError(f"{origin} is not valid ONNX: {_first_sentence(error)}") from error


def check_opsets(proto: onnx.ModelProto, origin: str) -> dict[str, int]:
    """The version of each imported operator set; ModelError if one is too old, too new or imported twice."""
    opsets: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = entry.domain
        if opsets.setdefault(domain, entry.version) != entry.version:
            raise ModelError(
                f"{origin} imports operator set {domain or 'ai.onnx'!r} twice: {opsets[domain]} and {entry.version}"
            )
    if not opsets:
        raise ModelError(f"{origin} names no operator set version")
    newest = newest_opset()
    version = opsets.get("", newest)
    if version < OLDEST_OPSET:
        raise ModelError(
            f"{origin} uses opset {version}, expected {OLDEST_OPSET} to {newest}",
            advice="export it again with a newer opset, or convert it by onnx.version_converter",
        )
    if version > newest:
        raise ModelError(
            f"{origin} uses opset {version}, expected {OLDEST_OPSET} to {newest}, which onnx {onnx.__version__} knows",
            advice="upgrade the onnx package, or export the model with an older opset",
        )
    return opsets


def _check_operators(proto: onnx.ModelProto, opsets: dict[str, int], origin: str) -> None:
    local = {(function.domain, function.name) for function in proto.functions}
    faults: dict[str, str] = {}
    for node in each_node(proto):
        domain = node.domain
        if (domain, node.op_type) in local or not is_standard(domain):
            continue
        if fault := _operator_fault(domain, node.op_type, opsets.get(domain)):
            faults.setdefault(fault, f"node {node.name!r}" if node.name else f"the node that makes {node.output[:1]}")
    if faults:
        listed = [f"{fault} ({where})" for fault, where in list(faults.items())[:_MAX_LISTED]]
        if len(faults) > _MAX_LISTED:
            listed.append(f"and {len(faults) - _MAX_LISTED} more")
        raise ModelError(
            f"{origin} has operators that no standard operator set defines: {'; '.join(listed)}",
            advice="export the model with standard operators, or give custom operators a domain of their own",
        )


def _operator_fault(domain: str, operator: str, version: int | None) -> str:
    """What is wrong with an operator of a standard domain, or the empty string."""
    known = _schemas_by_domain()[domain]
    full = f"{domain}.{operator}" if domain else operator
    if operator not in known:
        near = difflib.get_close_matches(operator, known, n=1, cutoff=0.8)
        return full + (f", did you mean {near[0]}?" if near else "")
    if version is None:
        return f"{full}, whose operator set {domain or 'ai.onnx'!r} is not imported"
    if version < known[operator]:
        return f"{full}, which first came with opset {known[operator]}; the model uses {version}"
    return ""


def _check_outputs(graph: onnx.GraphProto, origin: str) -> None:
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known.update(name for node in graph.node for name in node.output)
    for output in graph.output:
        if output.name not in known or not output.name:
            raise ModelError(f"{origin}: no node makes the graph output {output.name!r}")
    if not graph.output:
        raise ModelError(f"{origin} has no outputs")


def without_data(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose tensors beyond a kilobyte, and all external ones, are empty: what onnx's checker needs to see.

    The checker looks for external files relative to the working directory, and takes at most 2 GB.
    """
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    for tensor, _ in each_tensor(light):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.ByteSize() > 1024:
            _empty(tensor)
    return light


def _empty(tensor: onnx.TensorProto) -> None:
    keep: dict[str, Any] = {"name": tensor.name, "data_type": tensor.data_type, "dims": [0]}
    tensor.Clear()
    for field, value in keep.items():
        if field == "dims":
            tensor.dims.extend(value)
        else:
            setattr(tensor, field, value)


# The IR version that first has device configurations; onnx_ir writes them in no older one.
_DEVICE_CONFIGURATIONS = 11


def drop_unkept(proto: onnx.ModelProto) -> list[str]:
    """Remove what the file holds beside the inference graph and the IR cannot keep; returns it in words."""
    lost = []
    placed = [node for node in each_node(proto) if node.device_configurations]
    if proto.ir_version < _DEVICE_CONFIGURATIONS and (placed or proto.configuration):
        lost.append(f"device configurations, which IR version {proto.ir_version} does not have")
        proto.ClearField("configuration")
        for node in placed:
            node.ClearField("device_configurations")
    if proto.training_info:
        lost.append("training_info")
    names = [name for graph in each_graph(proto) for name in (i.name for i in graph.initializer) if not name]
    if names:
        lost.append(f"{len(names)} initializers without a name")
    return lost


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
