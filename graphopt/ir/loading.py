"""Load a model into the IR: from whatever a user has to a graph that passes can trust, or a ModelError."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.external_data
import onnx_ir.serde

from graphopt.errors import GraphoptError, ModelError, ModelWarning
from graphopt.ir import admission, functions, source, tensors, weights
from graphopt.ir.light import light_proto
from graphopt.ir.verification import verify_structure

# The first IR version that lets an initializer stand without being an input too.
_FREE_INITIALIZERS = 4


def load(source_: str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model) -> ir.Model:
    """Load an ONNX model of opset 7 or newer.

    Functions of the model are inlined; control flow, custom domains, names, metadata and doc strings are kept.
    External data stays in its files and is mapped when it is read. Inputs that have an initializer become constants.
    The model is the caller's own: neither a given ModelProto nor a given onnx_ir.Model is changed later.

    Args:
        source_: a path of an .onnx file, its bytes, or a model that onnx or onnx_ir holds.

    Raises:
        ModelError: it cannot be read, is damaged, unsafe, or is not valid ONNX.
        VerifyError: it is read, but breaks an invariant of the IR.

    Warns:
        ModelWarning: a weight is NaN or infinite; something that does not matter to inference is dropped.
    """
    if isinstance(source_, ir.Model):
        model, origin = _from_ir(source_)
    else:
        model, origin = _from_proto(*source.read_proto(source_))
    if model.functions:
        functions.inline(model, origin)
        admission.check_model(light_proto(model), origin)  # a body may be wrong only for the operands of a call
    _fold_inputs_with_data(model, origin)
    verify_structure(model)
    try:
        weights.warn_of_non_finite(model, origin)
    except OSError as error:
        raise ModelError(f"{origin}: cannot read external data: {error}") from error
    return model


def _from_ir(given: ir.Model) -> tuple[ir.Model, str]:
    """A checked copy of a model that onnx_ir holds."""
    origin = "the model"
    try:
        model = given.clone()
        proto = light_proto(model)
        admission.name_default_domain(proto)
        functions.check_functions(proto, origin)
        admission.check_model(proto, origin)
    except GraphoptError:
        raise
    except Exception as error:  # onnx_ir cannot copy a graph whose nodes are out of order
        raise ModelError(f"{origin} is not a valid ONNX model: {_innermost(error)}") from error
    return model, origin


def _from_proto(proto: onnx.ModelProto, folder: Path | None, origin: str) -> tuple[ir.Model, str]:
    """Check the proto, and turn it into an IR whose weights are arrays or files."""
    try:
        source.check_text(proto, origin)
        admission.name_default_domain(proto)
        admission.check_opsets(proto, origin)
        tensors.check_tensors(proto, folder, origin)
        functions.check_functions(proto, origin)
        proto = functions.to_model_opsets(proto)
        admission.check_model(proto, origin)
        if lost := admission.drop_unkept(proto):
            warnings.warn(f"{origin}: not kept: {', '.join(lost)}", ModelWarning, stacklevel=3)
        model = ir.serde.deserialize_model(proto)
    except GraphoptError:
        raise
    except Exception as error:  # onnx and onnx_ir raise any type on input that they did not expect
        raise ModelError(f"{origin} is not a valid ONNX model: {_innermost(error)}") from error
    if folder is not None:
        ir.external_data.set_base_dir(model.graph, folder)
    _detach_from_proto(model)
    return model, origin


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _detach_from_proto(model: ir.Model) -> None:
    """Make weights arrays: a TensorProto copies its bytes at every look, and keeps the whole file in memory."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.serde.TensorProtoTensor):
                value.const_value = _as_array(value.const_value)
    for node in model.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.serde.TensorProtoTensor):
                tensor = _as_array(attribute.value)
                node.attributes[name] = ir.AttrTensor(name, tensor, doc_string=attribute.doc_string)


def _as_array(tensor: ir.serde.TensorProtoTensor) -> ir.TensorProtocol:
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=tensor.metadata_props,
    )


def _fold_inputs_with_data(model: ir.Model, origin: str) -> None:
    """An input with an initializer is a constant, not an input of the compiled model."""
    inputs = model.graph.inputs
    constants = [value for value in inputs if value.is_initializer()]
    version, model.ir_version = model.ir_version, max(model.ir_version, _FREE_INITIALIZERS)  # passes add initializers
    if not constants:
        return
    if version >= _FREE_INITIALIZERS:  # before, all initializers had to be inputs
        names = ", ".join(repr(value.name) for value in constants[:5]) + (", ..." if len(constants) > 5 else "")
        warnings.warn(f"{origin}: inputs with a default value become constants: {names}", ModelWarning, stacklevel=3)
    kept = [value for value in inputs if not value.is_initializer()]
    inputs.clear()
    inputs.extend(kept)
