"""The tensors of a ModelProto: where they are, and whether their data is what type and dimensions promise.

Checked before anything allocates by the dimensions, so that a damaged or hostile file costs no memory.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt.errors import ModelError

# numpy's limit on the rank of an array.
MAX_RANK = 64
_MAX_BYTES = 2**62

_T = onnx.TensorProto
# The typed field that holds the data of each element type where raw_data does not.
_TYPED_FIELD: dict[int, str] = {
    _T.FLOAT: "float_data",
    _T.COMPLEX64: "float_data",
    _T.DOUBLE: "double_data",
    _T.COMPLEX128: "double_data",
    _T.INT64: "int64_data",
    _T.UINT32: "uint64_data",
    _T.UINT64: "uint64_data",
    _T.STRING: "string_data",
}
_OTHER_TYPED_FIELD = "int32_data"


def each_graph(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every subgraph, of functions too."""
    yield from _graph_and_subgraphs(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _subgraphs(node)


def _graph_and_subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        yield from _subgraphs(node)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from _graph_and_subgraphs(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_and_subgraphs(graph)


def each_node(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the main graph, the subgraphs and the functions."""
    for graph in each_graph(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def each_tensor(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, str]]:
    """Every dense tensor, and how to name it in a message."""
    for graph in each_graph(model):
        for tensor in graph.initializer:
            yield tensor, f"initializer {tensor.name!r}"
    for function in model.functions:
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute, f"function {function.name!r}")
    for node in each_node(model):
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute, f"{node.op_type} {node.name!r}")


def _attribute_tensors(attribute: onnx.AttributeProto, owner: str) -> Iterator[tuple[onnx.TensorProto, str]]:
    if attribute.HasField("t"):
        yield attribute.t, f"attribute {attribute.name!r} of {owner}"
    for index, tensor in enumerate(attribute.tensors):
        yield tensor, f"attribute {attribute.name}[{index}] of {owner}"


def check_tensors(model: onnx.ModelProto, folder: Path | None, origin: str) -> None:
    """Raise ModelError if a tensor's data is missing, too short or too long, or lies where it must not.

    Args:
        folder: where external data may lie; None if the model did not come from a file.
    """
    _refuse_sparse(model, origin)
    for tensor, name in each_tensor(model):
        size = _check_type_and_dims(tensor, f"{origin}: {name}")
        if tensor.data_location == _T.EXTERNAL:
            _check_external(tensor, size, folder, f"{origin}: {name}")
        else:
            _check_inline(tensor, size, f"{origin}: {name}")


def _refuse_sparse(model: onnx.ModelProto, origin: str) -> None:
    for graph in each_graph(model):
        for sparse in graph.sparse_initializer:
            raise ModelError(
                f"{origin}: initializer {sparse.values.name!r} is a sparse tensor, which is not supported",
                advice="export the model with dense weights",
            )
    for node in each_node(model):
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise ModelError(
                    f"{origin}: attribute {attribute.name!r} of {node.op_type} {node.name!r} is a sparse tensor, "
                    "which is not supported",
                    advice="export the model with dense constants",
                )


def _check_type_and_dims(tensor: onnx.TensorProto, where: str) -> int:
    """The number of elements that type and dimensions promise."""
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(f"{where} has the unknown element type {tensor.data_type}")
    if tensor.HasField("segment"):
        raise ModelError(f"{where} is a segment of a tensor, which is not supported")
    if len(tensor.dims) > MAX_RANK:
        raise ModelError(f"{where} has {len(tensor.dims)} dimensions, expected at most {MAX_RANK}")
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"{where} has a negative dimension: {list(tensor.dims)}")
    # numpy refuses too large dimensions even in an array without elements.
    if math.prod(dim or 1 for dim in tensor.dims) > _MAX_BYTES // 16:
        raise ModelError(f"{where} has impossibly large dimensions: {list(tensor.dims)}")
    return math.prod(tensor.dims)


def _byte_count(dtype: ir.DataType, elements: int) -> int:
    return (elements * int(dtype.bitwidth) + 7) // 8


def _check_inline(tensor: onnx.TensorProto, elements: int, where: str) -> None:
    dtype = ir.DataType(tensor.data_type)
    described = f"{dtype.name.lower()}{list(tensor.dims)}"
    if tensor.HasField("raw_data"):
        if dtype == ir.DataType.STRING:
            raise ModelError(f"{where} is {described} but holds raw bytes")
        expected, found = _byte_count(dtype, elements), len(tensor.raw_data)
        unit = "bytes"
    else:
        field = _TYPED_FIELD.get(tensor.data_type, _OTHER_TYPED_FIELD)
        expected, found = _typed_length(dtype, elements), len(getattr(tensor, field))
        unit = f"entries of {field}"
    if found != expected:
        raise ModelError(f"{where} is {described} and needs {expected} {unit}, but holds {found}")


def _typed_length(dtype: ir.DataType, elements: int) -> int:
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * elements  # real and imaginary parts
    if dtype != ir.DataType.STRING and dtype.bitwidth in (2, 4):
        return _byte_count(dtype, elements)  # packed, one byte an entry
    return elements


def _check_external(tensor: onnx.TensorProto, elements: int, folder: Path | None, where: str) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if tensor.data_type == _T.STRING:
        raise ModelError(f"{where} is a string tensor, which cannot lie in external data")
    if not location:
        raise ModelError(f"{where} is external data without a location")
    if folder is None:
        raise ModelError(
            f"{where} lies in the external file {location!r}, which cannot be found without the model's own path",
            advice="load the model by its path",
        )
    offset = _non_negative(entries.get("offset", "0"), "offset", where)
    needed = _byte_count(ir.DataType(tensor.data_type), elements)
    length = _non_negative(entries.get("length", str(needed)), "length", where)
    if length != needed:
        raise ModelError(f"{where} needs {needed} bytes, but its external data is declared to have {length}")
    size = _external_file_size(folder, location, where)
    if offset + needed > size:
        raise ModelError(
            f"{where} needs bytes {offset} to {offset + needed} of external file {location!r}, which has only {size}",
            advice="the file is truncated or belongs to another model; copy it again",
        )


def _non_negative(text: str, field: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"{where} has the external data {field} {text!r}, expected a non-negative number")
    return int(text)


def _external_file_size(folder: Path, location: str, where: str) -> int:
    """The size of a regular file inside `folder`, whatever links lie between."""
    outside = f"{where} lies in external file {location!r}, which is outside the model's folder"
    advice = "external data must lie in the folder of the model or below it"
    if "\0" in location:
        raise ModelError(f"{where} has an external data location with a null byte")
    if Path(location).is_absolute() or location.startswith("\\") or location[1:2] == ":":
        raise ModelError(f"{where} has the absolute external data path {location!r}", advice=advice)
    if ".." in location.replace("\\", "/").split("/"):
        raise ModelError(outside, advice=advice)
    path = folder / location
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{outside} (through a symbolic link)", advice=advice)
        status = path.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        reason = getattr(error, "strerror", None) or "a loop of symbolic links"
        raise ModelError(
            f"{where} lies in external file {location!r}, which cannot be read: {reason}",
            advice=f"expected it in {folder}",
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{where} lies in external file {location!r}, which is not a regular file")
    if status.st_nlink > 1:
        # onnx_ir, which maps the data, takes a second hard link for an attempt to read a foreign file.
        raise ModelError(
            f"{where} lies in external file {location!r}, which has {status.st_nlink} hard links, expected 1",
            advice=f"make it a file of its own: cp {location} copy && mv copy {location}",
        )
    return status.st_size
